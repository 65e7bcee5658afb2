//! Homes packed, torn, altered and put in place.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bytes::Bytes;

use super::*;
use crate::storage::{
    Commit, Durability, Key, Namespace, Op, Quotas, SqliteAdapter, StorageAdapter as _, Terms,
};

const SECRET: &str = "the key of the authority";

/// A home with something of everything.
struct Home {
    directory: tempfile::TempDir,
}

impl Home {
    fn empty() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        fs::create_dir(directory.path().join("data")).expect("made");
        Self { directory }
    }

    fn lived_in(word: &str) -> Self {
        let home = Self::empty();
        home.write("core.toml", &format!("# {word}\n"));
        home.write("data/desired.json", &format!("{{\"{word}\":\"STARTED\"}}"));
        home.write("data/run-state.json", "of this boot");
        home.write("data/core.lock", "1");
        home.write("data/security/ca.key", SECRET);
        home.write("data/security/ca.pem", word);
        home.write("data/security/grants/lamp.json", word);
        home.write("data/security/audit.jsonl", "what was done");
        home.write("data/plugins/lamp/own.json", "the plugin's own");
        home.store(word);
        home
    }

    fn places(&self) -> Places {
        Places {
            data_dir: self.path("data"),
            database: self.path("data/runtime.db"),
            configuration: Some(self.path("core.toml")),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a file")).expect("made");
        fs::write(path, text).expect("written");
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|error| error.kind().to_string())
    }

    fn store(&self, word: &str) {
        let adapter = self.open();
        let key = Key::parse("word").expect("good");
        let value = Bytes::from(format!("\"{word}\""));
        let commit = Commit {
            namespace: namespace(),
            checks: Vec::new(),
            ops: vec![Op::set(key, value).expect("JSON")],
        };
        let (now, quotas) = (SystemTime::now(), Quotas::none());
        let terms = Terms {
            at: now,
            now,
            quotas: &quotas,
        };
        let results = adapter.commit(&[commit], &terms).expect("writes");
        assert!(results.iter().all(Result::is_ok));
    }

    fn stored(&self) -> Option<String> {
        let adapter = self.open();
        let key = Key::parse("word").expect("good");
        let found = adapter.get(&namespace(), &key).expect("reads");
        found.map(|entry| entry.value.as_str().to_owned())
    }

    fn open(&self) -> SqliteAdapter {
        SqliteAdapter::open(&self.path("data/runtime.db"), Durability::Full).expect("opens")
    }

    fn pack(&self) -> PathBuf {
        let to = self.path("house.tar");
        let copy = self.path("copy.db");
        let revision = self.open().backup(&copy).expect("copied");
        let packed = self.places().pack(&copy, revision, &to);
        packed.expect("packed");
        to
    }

    fn restore(&self, archive: &Path) -> Result<Restored, Error> {
        restore(archive, &self.places(), SystemTime::now())
    }

    /// All files but databases and locks, with what is in them.
    fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut files = BTreeMap::new();
        let mut left = vec![self.directory.path().to_owned()];
        while let Some(directory) = left.pop() {
            for entry in fs::read_dir(directory).expect("there") {
                let path = entry.expect("readable").path();
                let name = path.to_string_lossy().into_owned();
                if path.is_dir() {
                    left.push(path);
                } else if !name.contains("runtime.db") && !name.ends_with(".lock") {
                    files.insert(path.clone(), fs::read(&path).expect("readable"));
                }
            }
        }
        files
    }
}

fn namespace() -> Namespace {
    Namespace::parse("house").expect("good")
}

fn names(report: &Report) -> Vec<&str> {
    report.parts.iter().map(|(name, _)| name.as_str()).collect()
}

#[test]
fn a_home_holds_what_belongs_to_it_and_nothing_of_this_boot() {
    let home = Home::lived_in("old");
    let archive = home.pack();
    assert!(is_home(&archive) && !is_home(&home.path("data/runtime.db")));
    let mode = fs::metadata(&archive).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let report = verify(&archive).expect("whole");
    let expected = [
        "configuration/core.toml",
        "data/desired.json",
        "data/security/ca.key",
        "data/security/ca.pem",
        "data/security/grants/lamp.json",
        "database/runtime.db",
    ];
    assert_eq!(names(&report), expected);
    assert_eq!(report.about.revision, 1);
}

#[test]
fn every_byte_that_is_lost_or_changed_is_noticed_and_its_part_is_named() {
    let home = Home::lived_in("old");
    let archive = home.pack();
    let whole = fs::read(&archive).expect("there");
    let bad = home.path("bad.tar");
    let refused = |bytes: &[u8]| {
        fs::write(&bad, bytes).expect("written");
        let before = Home::lived_in("new");
        let untouched = before.files();
        let error = before.restore(&bad).expect_err("damaged");
        assert_eq!(before.files(), untouched, "nothing has changed");
        let text = crate::error::chain(&error);
        assert!(!text.contains(SECRET), "{text}");
        text
    };
    let at = |needle: &str| {
        let found = whole
            .windows(needle.len())
            .position(|window| window == needle.as_bytes());
        found.expect("in it")
    };
    // In the middle of a part, and between two.
    assert!(refused(&whole[..at(SECRET) + 3]).contains("data/security/ca.key"));
    assert!(refused(&whole[..at("data/security/ca.pem")]).contains("follows data/security/ca.key"));
    for (needle, part) in [
        (SECRET, "data/security/ca.key"),
        ("SQLite format 3", "database/runtime.db"),
        ("STARTED", "data/desired.json"),
    ] {
        let mut altered = whole.clone();
        altered[at(needle) + 1] ^= 1;
        let text = refused(&altered);
        assert!(text.contains(part), "{text}");
    }
    let name = at("data/security/ca.pem");
    let mut renamed = whole.clone();
    renamed[name] ^= 1;
    refused(&renamed);
    // Torn anywhere, it is never taken for whole. The last blocks are empty.
    let end = at("  database/runtime.db");
    for length in (0..end).step_by(whole.len() / 40) {
        fs::write(&bad, &whole[..length]).expect("written");
        inspect(&bad).expect_err("torn");
    }
}

#[test]
fn the_digest_beside_it_counts_too() {
    let home = Home::lived_in("old");
    let archive = home.pack();
    fs::write(crate::storage::digest_path(&archive), "0000  house.tar\n").expect("written");
    let error = verify(&archive).expect_err("another");
    assert!(error.to_string().contains("the archive itself"), "{error}");
}

#[test]
fn a_newer_form_is_refused_by_name() {
    let home = Home::lived_in("old");
    let archive = home.pack();
    let mut bytes = fs::read(&archive).expect("there");
    let form = b"\"format\": 1";
    let at = bytes.windows(form.len()).position(|window| window == form);
    bytes[at.expect("in it") + form.len() - 1] = b'9';
    fs::write(&archive, bytes).expect("written");
    let error = verify(&archive).expect_err("newer");
    assert!(matches!(error, Error::Newer { found: 9, .. }), "{error}");
}

#[test]
fn what_is_restored_is_as_it_was_and_what_it_replaces_is_kept() {
    let source = Home::lived_in("old");
    let archive = source.pack();
    let home = Home::lived_in("new");
    home.write("data/security/credentials.json", "made since");
    let restored = home.restore(&archive).expect("restored");
    assert_eq!(home.read("core.toml"), "# old\n");
    assert_eq!(home.read("data/desired.json"), "{\"old\":\"STARTED\"}");
    assert_eq!(home.read("data/security/grants/lamp.json"), "old");
    assert_eq!(home.stored().as_deref(), Some("\"old\""));
    assert!(!home.path("data/security/credentials.json").exists());
    assert_eq!(home.read("data/security/audit.jsonl"), "what was done");
    assert_eq!(home.read("data/run-state.json"), "of this boot");
    assert_eq!(home.read("data/plugins/lamp/own.json"), "the plugin's own");
    let kept = restored.replaced.expect("something was there");
    let read = |name: &str| fs::read_to_string(kept.join(name)).expect("kept");
    assert_eq!(read("configuration/core.toml"), "# new\n");
    assert_eq!(read("data/security/credentials.json"), "made since");
    assert!(restored.replaced_database.expect("it was there").exists());
    assert!(!home.path("data/restoring").exists());
    for name in ["data/security/ca.key", "core.toml", "data/runtime.db"] {
        let mode = fs::metadata(home.path(name)).expect("there");
        assert_eq!(mode.permissions().mode() & 0o077, 0, "{name}");
    }
}

#[test]
fn an_empty_machine_becomes_the_home_and_a_configuration_can_be_left_alone() {
    let source = Home::lived_in("old");
    let archive = source.pack();
    let home = Home::empty();
    let places = Places {
        configuration: None,
        ..home.places()
    };
    let restored = restore(&archive, &places, SystemTime::now()).expect("restored");
    assert_eq!(
        (restored.replaced, restored.replaced_database),
        (None, None)
    );
    assert!(!home.path("core.toml").exists());
    assert_eq!(home.read("data/security/ca.key"), SECRET);
    assert_eq!(home.stored().as_deref(), Some("\"old\""));
}

#[test]
fn a_core_that_runs_keeps_its_home() {
    let source = Home::lived_in("old");
    let archive = source.pack();
    let home = Home::lived_in("new");
    let _core = crate::files::DirectoryLock::take(&home.path("data")).expect("free");
    let error = home.restore(&archive).expect_err("in use");
    assert!(matches!(error, Error::InUse { .. }), "{error}");
}

/// What a restore that was interrupted leaves: with its last `done` files in place, and the database if it
/// got so far.
#[test]
fn an_interrupted_restore_is_finished_from_wherever_it_was() {
    let source = Home::lived_in("old");
    let archive = source.pack();
    for done in 0..=6 {
        let home = Home::lived_in("new");
        home.write("data/security/credentials.json", "made since");
        let data = home.path("data");
        // Everything up to the point from which it goes forward only; then the first steps by hand.
        assert!(finish(&data).expect("nothing to do").is_none());
        restore::begin(&archive, &home.places(), SystemTime::now()).expect("begun");
        assert!(home.path("data/restoring/plan.json").exists());
        assert_eq!(home.read("core.toml"), "# new\n", "nothing has changed yet");
        for name in ["security/ca.pem", "security/ca.key", "desired.json"]
            .iter()
            .take(done)
        {
            let from = home.path("data/restoring/data").join(name);
            fs::copy(from, data.join(name)).expect("copied");
        }
        if done > 3 {
            fs::remove_file(data.join("security/credentials.json")).expect("there");
        }
        if done > 4 {
            // A crash in the middle of the database's own restore.
            fs::write(home.path("data/runtime.db.restoring"), "half").expect("written");
        }
        if done > 5 {
            fs::write(home.path("core.toml"), "# old\n").expect("written");
        }
        let restored = finish(&data).expect("finished").expect("there was one");
        assert_eq!(home.read("core.toml"), "# old\n");
        assert_eq!(home.read("data/security/ca.pem"), "old");
        assert_eq!(
            home.stored().as_deref(),
            Some("\"old\""),
            "after {done} steps"
        );
        assert!(!home.path("data/security/credentials.json").exists());
        let kept = restored.replaced.expect("something was there");
        let kept = fs::read_to_string(kept.join("data/security/credentials.json"));
        assert_eq!(kept.expect("kept"), "made since", "after {done} steps");
        assert!(finish(&data).expect("nothing to do").is_none());
    }
}

#[test]
fn what_was_interrupted_before_it_began_has_changed_nothing() {
    let source = Home::lived_in("old");
    let archive = source.pack();
    let home = Home::lived_in("new");
    home.write("data/restoring.new/data/security/ca.key", "half");
    assert!(finish(&home.path("data")).expect("nothing to do").is_none());
    assert_eq!(home.read("data/security/ca.pem"), "new");
    home.restore(&archive).expect("the next one goes through");
    assert!(!home.path("data/restoring.new").exists());
}

/// The configuration in the archive, or the operator, says another data directory than the one in force.
#[test]
fn a_restore_into_another_data_directory_goes_on_wherever_the_next_core_looks() {
    let source = Home::lived_in("old");
    let archive = source.pack();
    for steps in 0..3 {
        let home = Home::lived_in("new");
        let places = Places {
            data_dir: home.path("elsewhere"),
            database: home.path("elsewhere/runtime.db"),
            ..home.places()
        };
        fs::create_dir(&places.data_dir).expect("made");
        let (configuration, in_force) = (home.path("core.toml"), home.path("data"));
        let finish = || finish_marked(&configuration, Some(&in_force));
        assert!(finish().expect("nothing to do").is_none());
        restore::begin(&archive, &places, SystemTime::now()).expect("begun");
        if steps == 1 {
            // The power goes when the configuration is in place already.
            fs::write(&configuration, "# old\n").expect("written");
        }
        if steps == 2 {
            // Before the point from which it goes forward only.
            fs::rename(
                home.path("elsewhere/restoring"),
                home.path("elsewhere/restoring.new"),
            )
            .expect("there");
            assert_eq!(unfinished(&home.places()).expect("seen"), None);
            assert!(finish().expect("nothing has changed").is_none());
            assert!(finish().expect("nothing to do").is_none());
            assert_eq!(home.read("core.toml"), "# new\n");
            continue;
        }
        for seen in [&places, &home.places()] {
            let found = unfinished(seen).expect("seen");
            assert_eq!(found.as_ref(), Some(&places.data_dir), "and refused");
        }
        let (data_dir, _) = finish().expect("finished").expect("there was one");
        assert_eq!(data_dir, places.data_dir);
        assert_eq!(home.read("core.toml"), "# old\n");
        assert_eq!(home.read("elsewhere/security/ca.pem"), "old");
        assert!(home.path("elsewhere/runtime.db").exists());
        assert_eq!(home.read("data/security/ca.pem"), "new", "left alone");
        assert_eq!(unfinished(&places).expect("seen"), None);
        assert!(finish().expect("nothing to do").is_none());
        assert!(!home.path("core.toml.restore").exists());
    }
}

#[test]
fn a_restore_whose_directory_is_not_there_is_not_forgotten() {
    let source = Home::lived_in("old");
    let archive = source.pack();
    let home = Home::lived_in("new");
    let places = Places {
        data_dir: home.path("elsewhere"),
        database: home.path("elsewhere/runtime.db"),
        ..home.places()
    };
    fs::create_dir(&places.data_dir).expect("made");
    restore::begin(&archive, &places, SystemTime::now()).expect("begun");
    let (configuration, in_force) = (home.path("core.toml"), home.path("data"));
    // Its disk is not mounted.
    fs::rename(&places.data_dir, home.path("away")).expect("there");
    fs::create_dir(&places.data_dir).expect("made");
    let error = finish_marked(&configuration, Some(&in_force)).expect_err("astray");
    let text = error.to_string();
    let mark = home.path("core.toml.restore").display().to_string();
    assert!(
        matches!(error, Error::Astray { .. }) && text.contains(&mark),
        "{text}"
    );
    fs::remove_dir(&places.data_dir).expect("empty");
    fs::rename(home.path("away"), &places.data_dir).expect("mounted");
    let finished = finish_marked(&configuration, Some(&in_force)).expect("finished");
    assert!(finished.is_some());
    // A mark that could not be taken away, of a restore that is through.
    let mark = format!("{{\"data_dir\":{:?}}}", places.data_dir);
    home.write("core.toml.restore", &mark);
    let through = finish_marked(&configuration, Some(&places.data_dir));
    assert!(through.expect("through").is_none());
    assert!(!home.path("core.toml.restore").exists());
}

#[test]
fn the_next_core_tells_the_audit_log_once() {
    let source = Home::lived_in("old");
    let archive = source.pack();
    let home = Home::lived_in("new");
    let data = home.path("data");
    tell_restored(&data).expect("nothing to tell");
    home.restore(&archive).expect("restored");
    fs::remove_dir_all(home.path("data/security")).expect("a home that has none");
    tell_restored(&data).expect("told");
    tell_restored(&data).expect("once");
    let audit = home.read("data/security/audit.jsonl");
    let lines: Vec<_> = audit
        .lines()
        .filter(|line| line.contains("restored"))
        .collect();
    assert_eq!(lines.len(), 1, "{audit}");
    let own = format!("uid {}", rustix::process::geteuid().as_raw());
    for part in [
        &archive.display().to_string(),
        &own,
        "made at",
        "restored at",
    ] {
        assert!(lines[0].contains(part), "{part} in {}", lines[0]);
    }
}

#[test]
fn root_is_sent_away_from_a_directory_of_somebody_else() {
    use std::os::unix::fs::chown;
    const SERVICE: u32 = 64_321;
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root gives directories away");
        return;
    }
    let source = Home::lived_in("old");
    let archive = source.pack();
    // A home that is there, and a new one in a directory of the service.
    for home in [Home::lived_in("new"), Home::empty()] {
        let data = home.path("data");
        if home.path("core.toml").exists() {
            chown(&data, Some(SERVICE), Some(SERVICE)).expect("given");
        } else {
            fs::remove_dir(&data).expect("empty");
            let parent = home.directory.path();
            chown(parent, Some(SERVICE), Some(SERVICE)).expect("given");
        }
        let refused = home.restore(&archive).expect_err("not root's");
        let text = crate::error::chain(&refused);
        assert!(text.contains("sudo -u '#64321'"), "{text}");
        assert!(!data.join("restoring").exists() && !data.join("restoring.new").exists());
    }
}
