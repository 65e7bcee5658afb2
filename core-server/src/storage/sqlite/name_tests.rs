//! One database under several names.

use std::os::unix::fs::symlink;
use std::path::PathBuf;

use super::offline::{restore, verify};
use super::*;

/// A database that nobody has open, and another place.
fn place() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let directory = tempfile::tempdir().expect("temporary directory");
    let [path, other] =
        ["data", "other"].map(|name| directory.path().join(name).join("runtime.db"));
    lock::create_directory(&other).expect("directory");
    open(&path).expect("opens").close();
    (directory, path, other)
}

fn open(path: &Path) -> Result<SqliteAdapter, OpenError> {
    SqliteAdapter::open(path, Durability::Full)
}

fn refusal(path: &Path) -> OpenError {
    match open(path) {
        Ok(_) => panic!("{} opened", path.display()),
        Err(error) => error,
    }
}

#[test]
fn a_link_to_a_database_has_its_lock_and_its_log() {
    let (_directory, path, link) = place();
    symlink(&path, &link).expect("links");
    let adapter = open(&link).expect("opens");
    let error = refusal(&path);
    assert!(matches!(error, OpenError::InUse { .. }), "{error}");
    let in_use = restore(&path, &link, SystemTime::now()).expect_err("a core has it open");
    assert!(matches!(in_use, OpenError::InUse { .. }), "{in_use}");
    assert!(lock::beside(&path, "-wal").exists());
    assert_eq!(verify(&link).expect("reads").findings, [""; 0]);
    adapter.close();
    let adapter = open(&path).expect("opens");
    let error = refusal(&link);
    assert!(matches!(error, OpenError::InUse { .. }), "{error}");
    adapter.close();
    // The link stays one, and a restore goes where it leads.
    let copy = link.with_file_name("copy.db");
    std::fs::copy(&path, &copy).expect("copies");
    restore(&copy, &link, SystemTime::now()).expect("restores");
    assert!(link.is_symlink() && !path.is_symlink());
    open(&path).expect("opens").close();
    // A directory may be a link too, and what a link leads to may not be there yet.
    let parent = path.parent().expect("one");
    let directory = link.with_file_name("directory");
    symlink(parent, &directory).expect("links");
    let adapter = open(&directory.join("new.db")).expect("makes");
    let error = refusal(&parent.join("new.db"));
    assert!(matches!(error, OpenError::InUse { .. }), "{error}");
    adapter.close();
    let early = link.with_file_name("early.db");
    symlink("../data/late.db", &early).expect("links");
    open(&early).expect("makes").close();
    assert!(early.is_symlink() && parent.join("late.db").is_file());
}

#[test]
fn a_second_name_is_refused_but_for_that_of_an_interrupted_restore() {
    let (_directory, path, other) = place();
    std::fs::hard_link(&path, &other).expect("links");
    for name in [&path, &other] {
        let error = refusal(name);
        assert!(
            matches!(error, OpenError::SecondName { names: 2, .. }),
            "{error}"
        );
    }
    let refused = restore(&path, &other, SystemTime::now()).expect_err("two names");
    assert!(matches!(refused, OpenError::SecondName { .. }), "{refused}");
    std::fs::remove_file(&other).expect("removes");
    let kept = lock::beside(&path, ".replaced-77");
    drop(offline::set_aside(&path, &kept).expect("keeps"));
    open(&path).expect("opens").close();
    let error = refusal(&kept);
    assert!(matches!(error, OpenError::SecondName { .. }), "{error}");
}
