//! Backups, checks, restoring, verifying.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;

use super::offline::{restore, verify};
use super::*;
use crate::storage::adapter::Op;
use crate::storage::admin::digest_path;
use crate::storage::quota::Quotas;
use crate::storage::{Config, Storage};

struct Place {
    _directory: tempfile::TempDir,
    path: PathBuf,
    copy: PathBuf,
}

fn place() -> Place {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("data").join("runtime.db");
    let copy = directory.path().join("backups").join("one.db");
    Place {
        _directory: directory,
        path,
        copy,
    }
}

fn namespace() -> Namespace {
    Namespace::parse("n").expect("good")
}

fn write(name: &str, text: &str) -> Commit {
    let key = Key::parse(name).expect("good");
    Commit {
        namespace: namespace(),
        checks: Vec::new(),
        ops: vec![Op::set(key, Bytes::copy_from_slice(text.as_bytes())).expect("JSON")],
    }
}

fn commit(adapter: &SqliteAdapter, batch: &[Commit]) {
    let quotas = Quotas::none();
    let terms = Terms {
        at: SystemTime::now(),
        now: SystemTime::now(),
        quotas: &quotas,
    };
    for result in adapter.commit(batch, &terms).expect("writes") {
        result.expect("applied");
    }
}

fn open(path: &Path) -> SqliteAdapter {
    SqliteAdapter::open(path, Durability::Full).expect("opens")
}

fn value(adapter: &SqliteAdapter, name: &str) -> Option<String> {
    let found = adapter.get(&namespace(), &Key::parse(name).expect("good"));
    let found = found.expect("reads");
    found.map(|entry| entry.value.as_str().to_owned())
}

#[tokio::test]
async fn a_backup_is_whole_has_its_digest_and_replaces_nothing() {
    use std::os::unix::fs::PermissionsExt as _;
    let place = place();
    let config = Config::sqlite(&place.path);
    let storage = Storage::open(config.open_adapter().expect("opens"), &config).expect("opens");
    let deadline = Instant::now() + Duration::from_secs(60);
    let key = Key::parse("k").expect("good");
    let set = storage.set(&namespace(), key, Bytes::from_static(b"1"), None, deadline);
    set.await.expect("writes");
    let made = storage
        .backup(place.copy.clone(), deadline)
        .await
        .expect("copies");
    assert_eq!((made.revision, &made.path), (Revision(1), &place.copy));
    let mode = std::fs::metadata(&place.copy).expect("there").permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
    let digest = std::fs::read_to_string(digest_path(&place.copy)).expect("there");
    assert_eq!(digest, format!("{}  one.db\n", made.sha256));
    let again = storage.backup(place.copy.clone(), deadline).await;
    assert!(
        matches!(again, Err(crate::storage::Error::FileExists { .. })),
        "{again:?}"
    );
    assert_eq!(storage.check(deadline).await.expect("reads"), [""; 0]);
    let report = verify(&place.copy).expect("reads");
    assert_eq!(
        (report.keys, report.bytes, report.has_digest),
        (1, 67, true)
    );
    assert_eq!(report.findings, [""; 0]);
    // A flipped byte in a value: the pages are well formed, but the digest tells.
    let mut bytes = std::fs::read(&place.copy).expect("reads");
    let last = bytes
        .iter()
        .rposition(|byte| *byte == b'1')
        .expect("the value");
    bytes[last] = b'2';
    std::fs::write(&place.copy, bytes).expect("writes");
    let report = verify(&place.copy).expect("reads");
    assert!(
        report.findings[0].contains("SHA-256"),
        "{:?}",
        report.findings
    );
    storage.close().await;
}

#[tokio::test]
async fn a_backup_leaves_the_files_of_others_alone() {
    let place = place();
    let config = Config::sqlite(&place.path);
    let storage = Storage::open(config.open_adapter().expect("opens"), &config).expect("opens");
    let deadline = Instant::now() + Duration::from_secs(60);
    std::fs::create_dir_all(place.copy.parent().expect("one")).expect("makes");
    let victim = place.copy.with_file_name("victim");
    std::fs::write(&victim, "precious").expect("writes");
    for suffix in ["", ".tmp", ".sha256"] {
        let theirs = lock::beside(&place.copy, suffix);
        std::os::unix::fs::symlink(&victim, &theirs).expect("links");
        let refused = storage.backup(place.copy.clone(), deadline).await;
        assert!(
            matches!(&refused, Err(crate::storage::Error::FileExists { path }) if *path == theirs),
            "{suffix}: {refused:?}"
        );
        assert_eq!(std::fs::read(&victim).expect("there"), b"precious");
        assert!(theirs.is_symlink(), "{suffix}");
        std::fs::remove_file(&theirs).expect("removes");
    }
    storage
        .backup(place.copy.clone(), deadline)
        .await
        .expect("copies");
    storage.close().await;
}

#[test]
fn a_backup_reads_one_snapshot_while_others_write() {
    let place = place();
    let adapter = Arc::new(open(&place.path));
    let batch = |round: u32| {
        let both = ["one", "other"].map(|half| write(half, &round.to_string()));
        let filler =
            (0..20).map(|at| write(&format!("f{at}"), &format!("\"{}\"", "x".repeat(5_000))));
        both.into_iter().chain(filler).collect::<Vec<_>>()
    };
    commit(&adapter, &batch(0));
    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let (adapter, stop) = (Arc::clone(&adapter), Arc::clone(&stop));
        std::thread::spawn(move || {
            let mut round = 0;
            while !stop.load(Ordering::SeqCst) {
                round += 1;
                commit(&adapter, &batch(round));
                adapter.maintain(Moment::Busy).expect("works");
            }
            round
        })
    };
    for index in 0..5 {
        let copy = place.copy.with_file_name(format!("{index}.db"));
        adapter.backup(&copy).expect("copies");
        let copy = open(&copy);
        assert_eq!(value(&copy, "one"), value(&copy, "other"));
        assert_eq!(copy.check().expect("reads"), [""; 0]);
    }
    stop.store(true, Ordering::SeqCst);
    assert!(writer.join().expect("no panic") > 0);
}

#[test]
fn a_long_reading_ends_before_the_log_has_no_bound() {
    let reader = LongReader::default();
    assert!(!reader.look(0), "there is none");
    let place = place();
    let adapter = open(&place.path);
    commit(&adapter, &[write("k", "1")]);
    // A reading that never ends by itself, and a log that grows.
    let endless = "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n) \
                   SELECT count(*) FROM n";
    let ended = std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let connection = connection::for_reading(&place.path).expect("opens");
            reader.read(&connection, |c| {
                c.query_row(endless, [], |row| row.get::<_, i64>(0))
            })
        });
        let mut frames = 1_000;
        while !reading.is_finished() {
            // Each look is one after a batch; the reading begins at some moment.
            if reader.look(frames) {
                frames += 1_000;
            }
            std::thread::yield_now();
        }
        reading.join().expect("no panic")
    });
    assert!(
        matches!(ended, Err(CopyFault::LogTooLong { limit_bytes }) if limit_bytes == 256 << 20),
        "{ended:?}"
    );
}

/// The engine's own backup, of a database that takes longer than the log may grow.
#[test]
fn a_backup_that_holds_the_log_up_for_too_long_is_ended_and_leaves_nothing() {
    let place = place();
    let mut adapter = open(&place.path);
    adapter.long_reader.max_growth = 100;
    let long = format!("\"{}\"", "x".repeat(100_000));
    for round in 0..40 {
        let batch: Vec<_> = (0..10)
            .map(|at| write(&format!("k{round}/{at}"), &long))
            .collect();
        commit(&adapter, &batch);
    }
    adapter.maintain(Moment::Idle).expect("works");
    let (ended, most) = std::thread::scope(|scope| {
        let copying = scope.spawn(|| adapter.backup(&place.copy));
        let mut most = 0;
        while !copying.is_finished() {
            commit(&adapter, &[write("hot", &long)]);
            adapter.maintain(Moment::Busy).expect("works");
            let log = adapter.with_writer(|c| write::checkpoint(c, "NOOP").expect("looks"));
            most = most.max(log.frames);
        }
        (copying.join().expect("no panic"), most)
    });
    assert!(
        matches!(ended, Err(CopyFault::LogTooLong { .. })),
        "{ended:?}"
    );
    assert!(most < 11_000 + 1_000, "bounded: {most} frames");
    let left = std::fs::read_dir(place.copy.parent().expect("one"));
    assert_eq!(left.expect("reads").count(), 0, "no half copy");
    commit(&adapter, &[write("hot", "1")]);
    adapter.maintain(Moment::Idle).expect("works");
    assert_eq!(adapter.check().expect("reads"), [""; 0]);
}

#[test]
fn restoring_puts_a_backup_in_place_keeps_what_was_there_and_goes_beyond_its_revisions() {
    let place = place();
    let adapter = open(&place.path);
    commit(&adapter, &[write("k", "1")]);
    adapter.backup(&place.copy).expect("copies");
    commit(&adapter, &[write("k", "2"), write("late", "1")]);
    let before = adapter.revision().expect("reads");

    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(77);
    let in_use = restore(&place.copy, &place.path, now).expect_err("a core has it open");
    assert!(matches!(in_use, OpenError::InUse { .. }), "{in_use}");
    // As after kill -9: the log is not in the database yet.
    drop(adapter);
    assert!(lock::beside(&place.path, "-wal").exists());
    let restored = restore(&place.copy, &place.path, now).expect("restores");
    let kept = lock::beside(&place.path, ".replaced-77");
    assert_eq!(restored.replaced.as_ref(), Some(&kept));
    assert!(
        !lock::beside(&place.path, "-wal").exists(),
        "no log of another database"
    );

    let adapter = open(&place.path);
    assert_eq!(value(&adapter, "k").as_deref(), Some("1"));
    assert_eq!(value(&adapter, "late"), None);
    let revision = adapter.revision().expect("reads");
    assert_eq!(revision, restored.revision);
    let gap = revision.0 - before.0;
    assert!(gap >= 1 << 40, "{revision} after {before}");
    commit(&adapter, &[write("k", "3")]);
    adapter.close();
    let old = open(&kept);
    assert_eq!(
        value(&old, "late").as_deref(),
        Some("1"),
        "with what was in its log"
    );
}

/// The moment before the new one is put in place.
#[test]
fn an_interrupted_restore_leaves_the_old_database_whole_and_no_core_starts() {
    let place = place();
    let adapter = open(&place.path);
    commit(&adapter, &[write("k", "1")]);
    adapter.backup(&place.copy).expect("copies");
    commit(&adapter, &[write("late", "1")]);
    // As after kill -9.
    drop(adapter);
    let restoring = lock::beside(&place.path, ".restoring");
    let kept = lock::beside(&place.path, ".replaced-77");
    std::fs::write(&restoring, "new").expect("writes");
    offline::empty_log(&place.path);
    drop(offline::set_aside(&place.path, &kept).expect("keeps"));
    let refused = SqliteAdapter::open(&place.path, Durability::Full);
    let refused = refused.map(|_| ()).expect_err("unfinished");
    assert!(
        matches!(refused, OpenError::RestoreUnfinished { .. }),
        "{refused}"
    );
    std::fs::remove_file(&restoring).expect("an operator's choice");
    let adapter = open(&place.path);
    assert_eq!(value(&adapter, "late").as_deref(), Some("1"), "whole");
    adapter.close();
    // Or the restore again.
    std::fs::write(&restoring, "half").expect("writes");
    restore(&place.copy, &place.path, SystemTime::now()).expect("restores");
    let adapter = open(&place.path);
    assert_eq!(value(&adapter, "late"), None);
}

#[test]
fn what_was_set_aside_can_be_put_back() {
    let place = place();
    let adapter = open(&place.path);
    commit(&adapter, &[write("late", "1")]);
    // As after kill -9.
    drop(adapter);
    let [log, kept] = ["-wal", ".replaced-77"].map(|suffix| lock::beside(&place.path, suffix));
    let aside = offline::set_aside(&place.path, &kept).expect("keeps");
    assert!(kept.exists() && !log.exists());
    aside.undo().expect("puts back");
    assert!(!kept.exists() && log.exists());
    std::fs::write(&kept, "somebody's").expect("writes");
    let refused = offline::set_aside(&place.path, &kept).map(|_| ());
    refused.expect_err("the name is taken");
    assert_eq!(std::fs::read(&kept).expect("there"), b"somebody's");
    assert_eq!(value(&open(&place.path), "late").as_deref(), Some("1"));
}

#[test]
fn a_backup_that_is_no_good_is_not_restored_and_nothing_is_touched() {
    let place = place();
    let adapter = open(&place.path);
    commit(&adapter, &[write("k", "1")]);
    adapter.backup(&place.copy).expect("copies");
    adapter.close();
    let before = std::fs::read(&place.path).expect("reads");
    let mut bytes = std::fs::read(&place.copy).expect("reads");
    for byte in bytes.iter_mut().skip(4_096).take(1_000) {
        *byte = 0xAA;
    }
    std::fs::write(&place.copy, bytes).expect("writes");
    restore(&place.copy, &place.path, SystemTime::now()).expect_err("damaged");
    let missing = place.copy.with_file_name("missing.db");
    restore(&missing, &place.path, SystemTime::now()).expect_err("not there");
    assert_eq!(std::fs::read(&place.path).expect("reads"), before);
    let left: Vec<_> = std::fs::read_dir(place.path.parent().expect("one"))
        .expect("reads")
        .map(|file| file.expect("reads").file_name())
        .collect();
    assert_eq!(
        left.len(),
        3,
        "the database, its lock and reserve: {left:?}"
    );
}

#[test]
fn a_restore_into_nothing_makes_the_database() {
    let place = place();
    let adapter = open(&place.path);
    commit(&adapter, &[write("k", "1")]);
    adapter.backup(&place.copy).expect("copies");
    let elsewhere = place.copy.with_file_name("new").join("runtime.db");
    let restored = restore(&place.copy, &elsewhere, SystemTime::now()).expect("restores");
    assert_eq!(restored.replaced, None);
    assert_eq!(value(&open(&elsewhere), "k").as_deref(), Some("1"));
}

#[test]
fn counts_that_do_not_agree_are_found() {
    let place = place();
    let adapter = open(&place.path);
    commit(&adapter, &[write("k", "1")]);
    adapter.with_writer(|connection| {
        let harm = "UPDATE tally SET bytes = bytes + 1 WHERE namespace = 'n'";
        connection.execute(harm, []).expect("harms");
    });
    let findings = adapter.check().expect("reads");
    assert!(findings[0].contains("counts"), "{findings:?}");
}

/// What is in the backup's directory.
fn beside_the_copy(place: &Place) -> Vec<String> {
    let files = std::fs::read_dir(place.copy.parent().expect("one")).expect("reads");
    let mut names: Vec<_> = files
        .map(|file| {
            file.expect("reads")
                .file_name()
                .into_string()
                .expect("text")
        })
        .collect();
    names.sort();
    names
}

#[test]
fn a_backup_of_a_miscounted_store_is_good_and_what_is_miscounted_is_restored_counted_anew() {
    let place = place();
    let adapter = open(&place.path);
    commit(&adapter, &[write("k", "1"), write("l", "2")]);
    let harm = "UPDATE tally SET bytes = bytes + 1 WHERE namespace = 'n'; \
                INSERT INTO tally VALUES ('ghost', 7, 7, 0)";
    adapter.with_writer(|connection| connection.execute_batch(harm).expect("harms"));
    assert_eq!(adapter.check().expect("reads").len(), 1);
    adapter.backup(&place.copy).expect("copies");
    let report = verify(&place.copy).expect("reads");
    assert_eq!((report.keys, report.bytes), (2, 2 * (64 + 1 + 1 + 1)));
    assert_eq!((report.findings.len(), report.miscounted), (0, None));
    assert_eq!(beside_the_copy(&place), ["one.db"]);
    drop(adapter);
    // The database itself as a backup.
    let report = verify(&place.path).expect("reads");
    assert!(report.findings.is_empty() && report.miscounted.is_some());
    let elsewhere = place.copy.with_file_name("new").join("runtime.db");
    restore(&place.path, &elsewhere, SystemTime::now()).expect("restores");
    let adapter = open(&elsewhere);
    assert_eq!(adapter.check().expect("reads"), [""; 0]);
    assert_eq!(adapter.namespaces().expect("reads").len(), 1);
}

#[test]
fn verifying_and_restoring_leave_nothing_beside_a_copied_database() {
    let place = place();
    let adapter = open(&place.path);
    commit(&adapter, &[write("k", "1")]);
    adapter.close();
    std::fs::create_dir_all(place.copy.parent().expect("one")).expect("makes");
    // A name that means something in a URI.
    let copy = place.copy.with_file_name("a ?b#c%20d.db");
    std::fs::copy(&place.path, &copy).expect("copies");
    let report = verify(&copy).expect("reads");
    assert_eq!((report.keys, report.findings.len()), (1, 0));
    let elsewhere = place.path.with_file_name("other.db");
    restore(&copy, &elsewhere, SystemTime::now()).expect("restores");
    assert_eq!(beside_the_copy(&place), ["a ?b#c%20d.db"]);
    assert_eq!(value(&open(&elsewhere), "k").as_deref(), Some("1"));
}

#[test]
fn no_restore_begins_with_a_revision_that_was_ever_answered() {
    let place = place();
    let adapter = open(&place.path);
    commit(&adapter, &[write("k", "1")]);
    adapter.backup(&place.copy).expect("copies");
    adapter.close();
    let unset = SystemTime::UNIX_EPOCH + Duration::from_secs(77);
    let wrong = SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 33);
    // What else is there is lost each time, with all that was answered.
    for now in [
        None,
        None,
        Some(unset),
        Some(unset),
        Some(wrong),
        Some(wrong),
    ] {
        let mut answered = Vec::new();
        for _ in 0..2 {
            let now = now.unwrap_or_else(SystemTime::now);
            restore(&place.copy, &place.path, now).expect("restores");
            let adapter = open(&place.path);
            commit(&adapter, &[write("k", "2"), write("l", "2")]);
            let revision = adapter.revision().expect("reads").0;
            assert!(revision < 1 << 53, "exact in JSON: {revision}");
            assert!(revision > 1 << 40, "far above: {revision}");
            for before in &answered {
                assert!(revision.abs_diff(*before) > 2, "{revision} after {before}");
            }
            answered.push(revision);
            drop(adapter);
            for suffix in ["", "-wal", "-shm"] {
                std::fs::remove_file(lock::beside(&place.path, suffix)).expect("lost");
            }
        }
    }
    // What is known is beyond the time: by a clock that was ahead once.
    let restored = restore(&place.copy, &place.path, SystemTime::now()).expect("restores");
    open(&place.path)
        .backup(&place.copy.with_file_name("two.db"))
        .expect("copies");
    let before = SystemTime::now() - Duration::from_secs(3_600);
    let again = restore(&place.copy.with_file_name("two.db"), &place.path, before);
    assert!(again.expect("restores").revision.0 >= restored.revision.0 + (1 << 40));
}
