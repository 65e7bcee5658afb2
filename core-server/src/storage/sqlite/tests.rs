//! What is SQLite's own: settings, files, damage, a full disk, a torn log, schemas.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use bytes::Bytes;

use super::hard_delay::{FIRST_HARD_DELAY, MAX_HARD_DELAY};
use super::schema::{MIGRATIONS, Migration, bring_up_to_date};
use super::*;
use crate::error::{Classify as _, Reason};
use crate::storage::adapter::Op;
use crate::storage::names::{Direction, KeyRange};
use crate::storage::quota::Quotas;

struct Place {
    directory: tempfile::TempDir,
    path: PathBuf,
}

fn place() -> Place {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("data").join("runtime.db");
    Place { directory, path }
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

fn terms(quotas: &Quotas) -> Terms<'_> {
    Terms {
        at: SystemTime::now(),
        now: SystemTime::now(),
        quotas,
    }
}

fn commit(adapter: &SqliteAdapter, name: &str, text: &str) -> Result<Applied, Rejection> {
    let mut results = adapter
        .commit(&[write(name, text)], &terms(&Quotas::none()))
        .expect("the engine works");
    results.pop().expect("one answer")
}

fn keys(adapter: &SqliteAdapter) -> Found<Key> {
    let stretch = Stretch {
        namespace: namespace(),
        range: KeyRange::new("", None, Direction::Ascending),
        direction: Direction::Ascending,
        limit: 100_000,
        max_bytes: usize::MAX,
        now: SystemTime::now(),
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    adapter.list_keys(&stretch, deadline).expect("reads")
}

fn pragma(adapter: &SqliteAdapter, name: &str) -> String {
    adapter.with_writer(|connection| {
        let value = connection
            .pragma_query_value(None, name, |row| row.get::<_, rusqlite::types::Value>(0));
        match value.expect(name) {
            rusqlite::types::Value::Integer(number) => number.to_string(),
            rusqlite::types::Value::Text(text) => text,
            other => panic!("{other:?}"),
        }
    })
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    lock::beside(path, suffix)
}

/// What a database that nobody has open consists of. A log without content is none.
fn files(path: &Path) -> [Option<Vec<u8>>; 2] {
    let read = |suffix| std::fs::read(beside(path, suffix)).ok();
    ["", "-wal"].map(|suffix| read(suffix).filter(|content| !content.is_empty()))
}

#[test]
fn what_durability_rests_on_is_set() {
    for (durability, synchronous) in [(Durability::Full, "2"), (Durability::Normal, "1")] {
        let place = place();
        let adapter = SqliteAdapter::open(&place.path, durability).expect("opens");
        for (name, expected) in [
            ("journal_mode", "wal"),
            ("synchronous", synchronous),
            ("wal_autocheckpoint", "0"),
            ("journal_size_limit", "67108864"),
            ("mmap_size", "0"),
            ("trusted_schema", "0"),
            ("encoding", "UTF-8"),
            ("user_version", "3"),
        ] {
            assert_eq!(pragma(&adapter, name), expected, "{name}");
        }
    }
}

#[test]
fn the_database_is_its_owners_alone_and_nobody_else_opens_it_meanwhile() {
    let place = place();
    let adapter = open(&place.path).expect("opens");
    commit(&adapter, "k", "1").expect("writes");
    for suffix in ["", "-wal", ".lock"] {
        let found = std::fs::metadata(beside(&place.path, suffix)).expect(suffix);
        assert_eq!(found.permissions().mode() & 0o777, 0o600, "{suffix}");
    }
    let error = refusal(&place.path);
    assert!(matches!(error, OpenError::InUse { .. }), "{error}");
    let process = format!("(process {})", std::process::id());
    assert!(error.to_string().contains(&process), "{error}");
    adapter.close();
    let again = open(&place.path).expect("free again");
    assert_eq!(again.revision().expect("reads"), Revision(1));
}

#[test]
fn closing_leaves_one_file() {
    let place = place();
    let adapter = open(&place.path).expect("opens");
    commit(&adapter, "k", "1").expect("writes");
    assert_eq!(keys(&adapter).items.len(), 1, "a reader was open too");
    adapter.close();
    adapter.close();
    assert!(!beside(&place.path, "-wal").exists());
    assert!(!beside(&place.path, "-shm").exists());
    assert!(matches!(adapter.revision(), Err(Fault::Closed)));
    let refused = adapter.commit(&[write("k", "2")], &terms(&Quotas::none()));
    assert!(refused.is_err());
}

#[test]
fn a_file_that_is_no_database_of_a_core_is_refused_and_left_alone() {
    let page = vec![b'x'; 8_192];
    let foreign = {
        let place = place();
        lock::create_directory(&place.path).expect("directory");
        let other = Connection::open(&place.path).expect("opens");
        other.execute_batch("CREATE TABLE t (a)").expect("creates");
        drop(other);
        std::fs::read(&place.path).expect("reads")
    };
    for (content, damaged) in [(page, true), (foreign, false), (vec![0; 4_096], true)] {
        let place = place();
        lock::create_directory(&place.path).expect("directory");
        std::fs::write(&place.path, &content).expect("writes");
        let error = refusal(&place.path);
        match error {
            OpenError::Corrupt { .. } => assert!(damaged),
            OpenError::NotOurs { .. } => assert!(!damaged),
            other => panic!("{other}"),
        }
        assert!(files(&place.path) == [Some(content), None]);
    }
}

#[test]
fn damage_is_reported_and_the_file_stays_as_it_is() {
    let place = place();
    let adapter = open(&place.path).expect("opens");
    let batch: Vec<_> = (0..2_000)
        .map(|index| write(&format!("key-{index:05}"), "\"some text\""))
        .collect();
    adapter
        .commit(&batch, &terms(&Quotas::none()))
        .expect("writes");
    adapter.close();
    drop(adapter);
    let mut content = std::fs::read(&place.path).expect("reads");
    assert!(content.len() > 10 * 4_096, "several pages");
    for byte in content.iter_mut().skip(3 * 4_096) {
        *byte = 0xAA;
    }
    std::fs::write(&place.path, &content).expect("writes");
    // The first pages are whole, so it may open; reading what is damaged says so.
    if let Ok(adapter) = open(&place.path) {
        let found = adapter.get(&namespace(), &Key::parse("key-01000").expect("good"));
        assert!(matches!(found, Err(Fault::Corrupt(_))), "{found:?}");
        let failed = adapter.commit(&[write("key-01000", "1")], &terms(&Quotas::none()));
        let failed = failed.expect_err("damaged");
        assert!(matches!(failed.fault, Fault::Corrupt(_)), "{failed:?}");
        assert_eq!(failed.outcome, Outcome::NotApplied);
        let error = failed.fault.into_error(failed.outcome);
        assert_eq!(error.reason(), Reason::Corrupt);
        assert!(matches!(adapter.reopen(), Err(Fault::Corrupt(_))));
        adapter.close();
    }
    assert!(files(&place.path)[0].as_ref() == Some(&content));
}

#[test]
fn a_vanished_database_is_not_made_anew_beside_its_log() {
    let place = place();
    let adapter = open(&place.path).expect("opens");
    commit(&adapter, "k", "1").expect("writes");
    let copy = place.directory.path().join("copy.db");
    let log = std::fs::read(beside(&place.path, "-wal")).expect("reads");
    std::fs::write(beside(&copy, "-wal"), &log).expect("writes");
    let error = refusal(&copy);
    assert!(matches!(error, OpenError::LogWithoutDatabase { .. }));
    assert!(files(&copy) == [None, Some(log)]);
}

#[test]
fn a_database_locked_by_another_program_is_named_so() {
    let place = place();
    drop(open(&place.path).expect("opens"));
    let other = Connection::open(&place.path).expect("opens");
    other
        .execute_batch("PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE;")
        .expect("locks");
    let error = refusal(&place.path);
    assert!(matches!(error, OpenError::Locked { .. }), "{error}");
}

#[test]
fn a_newer_schema_is_refused_naming_versions_and_copy() {
    let place = place();
    let adapter = open(&place.path).expect("opens");
    adapter.with_writer(|connection| {
        connection
            .pragma_update(None, "user_version", 7)
            .expect("updates");
    });
    adapter.close();
    std::fs::write(beside(&place.path, ".2.bak"), "a copy").expect("writes");
    let before = files(&place.path);
    let text = refusal(&place.path).to_string();
    for part in ["schema 7", "knows 3", "runtime.db.2.bak"] {
        assert!(text.contains(part), "{text}");
    }
    assert!(files(&place.path) == before);
}

#[test]
fn a_migration_is_whole_and_comes_after_a_copy() {
    let place = place();
    let adapter = open(&place.path).expect("opens");
    commit(&adapter, "k", "1").expect("writes");
    adapter.close();
    let steps = |fourth: &'static str| {
        let known = MIGRATIONS.iter().map(|step| Migration {
            to: step.to,
            sql: step.sql,
        });
        let mut steps: Vec<_> = known.collect();
        steps.push(Migration { to: 4, sql: fourth });
        steps
    };
    let connect = || connection::for_writing(&place.path).expect("opens");
    let schema = |connection: &Connection| -> i64 {
        connection
            .pragma_query_value(None, "user_version", |row| row.get(0))
            .expect("reads")
    };
    let failing = steps("ALTER TABLE entry ADD COLUMN a INTEGER; SELECT nonsense;");
    let connection = connect();
    let error = bring_up_to_date(&connection, &place.path, &failing).expect_err("fails");
    assert!(matches!(error, OpenError::Sqlite { .. }), "{error}");
    assert_eq!(schema(&connection), 3);
    let sql = "SELECT count(*) FROM pragma_table_info('entry') WHERE name = 'a'";
    let columns: i64 = connection
        .query_row(sql, [], |row| row.get(0))
        .expect("reads");
    assert_eq!(columns, 0, "half a migration");
    drop(connection);

    let good = steps("ALTER TABLE entry ADD COLUMN a INTEGER;");
    let connection = connect();
    bring_up_to_date(&connection, &place.path, &good).expect("migrates");
    assert_eq!(schema(&connection), 4);
    drop(connection);
    let copy = beside(&place.path, ".3.bak");
    let mode = std::fs::metadata(&copy).expect("is there").permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
    // The copy is a whole database of the schema before.
    let old = open(&copy).expect("opens");
    assert_eq!(keys(&old).items.len(), 1);
    assert!(matches!(
        refusal(&place.path),
        OpenError::NewerSchema {
            found: 4,
            known: 3,
            ..
        }
    ));
}

/// A database as the first core made it.
fn of_schema_1(path: &Path) {
    lock::create_directory(path).expect("directory");
    lock::create_database(path).expect("creates");
    let connection = connection::for_writing(path).expect("opens");
    bring_up_to_date(&connection, path, &MIGRATIONS[..1]).expect("makes");
    connection
        .execute_batch(
            "INSERT INTO entry VALUES ('a', 'k', '\"\u{e9}\"', 3, 5), ('a', 'l', '1', 2, 5), \
             ('b', 'k', '1', 1, 5); UPDATE store SET revision = 4",
        )
        .expect("fills");
    connection::close(connection).expect("closes");
}

#[test]
fn a_database_of_the_first_schema_is_counted_and_goes_on() {
    let place = place();
    of_schema_1(&place.path);
    let adapter = open(&place.path).expect("migrates");
    assert_eq!(adapter.revision().expect("reads"), Revision(4));
    let usage =
        |name: &str, keys, bytes| (Namespace::parse(name).expect("good"), Usage { keys, bytes });
    let expected = vec![usage("a", 2, 2 * 65 + 7), usage("b", 1, 65 + 2)];
    assert_eq!(adapter.namespaces().expect("reads"), expected);
    commit(&adapter, "k", "1").expect("writes");
    assert_eq!(adapter.revision().expect("reads"), Revision(5));
    assert_eq!(adapter.check().expect("reads"), [""; 0]);
    adapter.close();
    let copy = beside(&place.path, ".1.bak");
    assert_eq!(offline::verify(&copy).expect("reads").findings, [""; 0]);
}

#[test]
fn a_full_disk_refuses_what_has_no_room_and_lets_deletes_go_on() {
    let place = place();
    let adapter = open(&place.path).expect("opens");
    let long = format!("\"{}\"", "x".repeat(100_000));
    commit(&adapter, "old", &long).expect("writes");
    adapter.with_writer(|connection| {
        let pages: i64 = connection
            .pragma_query_value(None, "page_count", |row| row.get(0))
            .expect("reads");
        let limit = connection
            .pragma_update_and_check(None, "max_page_count", pages, |row| row.get::<_, i64>(0));
        assert_eq!(limit.expect("limits"), pages);
    });
    let delete = Commit {
        ops: vec![Op::Delete {
            key: Key::parse("absent").expect("good"),
        }],
        ..write("x", "1")
    };
    // One batch: what finds no room takes nobody with it.
    let batch = [write("small", "1"), write("large", &long), delete];
    let results = adapter
        .commit(&batch, &terms(&Quotas::none()))
        .expect("the batch goes on");
    assert!(matches!(&results[0], Ok(applied) if applied.revision == Revision(2)));
    assert!(matches!(results[1], Err(Rejection::DiskFull(_))));
    assert!(matches!(&results[2], Ok(applied) if applied.revision == Revision(2)));
    assert_eq!(keys(&adapter).items.len(), 2, "reads go on");
    let delete = Commit {
        ops: vec![Op::Delete {
            key: Key::parse("old").expect("good"),
        }],
        ..write("x", "1")
    };
    let results = adapter.commit(&[delete], &terms(&Quotas::none()));
    assert!(results.expect("goes on")[0].is_ok());
    commit(&adapter, "large", &long).expect("room again");
    assert_eq!(adapter.revision().expect("reads"), Revision(4));
}

#[test]
fn a_torn_log_opens_to_what_was_committed_up_to_there() {
    let place = place();
    let adapter = open(&place.path).expect("opens");
    for index in 0..12 {
        commit(&adapter, &format!("k{index:02}"), "1").expect("writes");
    }
    let database = std::fs::read(&place.path).expect("reads");
    let log = std::fs::read(beside(&place.path, "-wal")).expect("reads");
    let frame = 24 + 4_096;
    let cuts = (32..log.len())
        .step_by(frame)
        .flat_map(|start| [start, start + 1, start + 24, start + 2_000]);
    let (mut checked, mut revisions) = (0, Vec::new());
    for (index, cut) in cuts.chain([0, 16, log.len()]).enumerate() {
        let copy = place.directory.path().join(format!("torn-{index}.db"));
        std::fs::write(&copy, &database).expect("writes");
        let mut torn = log[..cut.min(log.len())].to_vec();
        if index % 2 == 1 {
            // What an old file system leaves behind: the length without the bytes.
            torn.resize(log.len(), 0);
        }
        std::fs::write(beside(&copy, "-wal"), &torn).expect("writes");
        let adapter = open(&copy).expect("opens to some state");
        let found = keys(&adapter);
        let names: Vec<_> = found.items.iter().map(|key| key.to_string()).collect();
        let prefix: Vec<_> = (0..found.revision.0)
            .map(|at| format!("k{at:02}"))
            .collect();
        assert_eq!(names, prefix, "cut at {cut}");
        commit(&adapter, "next", "1").expect("goes on");
        assert_eq!(adapter.revision().expect("reads").0, found.revision.0 + 1);
        revisions.push(found.revision.0);
        checked += 1;
    }
    assert!(checked > 40, "{checked}");
    assert_eq!(revisions.iter().max(), Some(&12));
    // The very first state may lie in the log too: then an empty store is what was committed.
    assert_eq!(revisions.iter().min(), Some(&0));
}

#[test]
fn reopening_keeps_what_was_committed_and_gives_readers_new_connections() {
    let place = place();
    let adapter = open(&place.path).expect("opens");
    commit(&adapter, "a", "1").expect("writes");
    assert_eq!(keys(&adapter).items.len(), 1);
    assert_eq!(adapter.reopen().expect("reopens"), Revision(1));
    let log = std::fs::metadata(beside(&place.path, "-wal")).expect("is there");
    assert_eq!(
        log.len(),
        0,
        "nothing follows frames that may not be on disk"
    );
    commit(&adapter, "b", "1").expect("writes");
    let found = keys(&adapter);
    assert_eq!((found.items.len(), found.revision), (2, Revision(2)));
    adapter.close();
    assert!(matches!(adapter.reopen(), Err(Fault::Closed)));
}

#[test]
fn the_log_is_emptied_when_idle_and_when_long() {
    let place = place();
    let adapter = open(&place.path).expect("opens");
    let log = || adapter.with_writer(|c| write::checkpoint(c, "NOOP").expect("looks"));
    assert_eq!(adapter.maintain(Moment::Busy).expect("works"), Upkeep::Done);
    let long = format!("\"{}\"", "x".repeat(200_000));
    let mut index = 0;
    while log().outstanding() <= PASSIVE_FRAMES {
        commit(&adapter, &format!("k{index}"), &long).expect("writes");
        index += 1;
    }
    assert_eq!(
        adapter.maintain(Moment::Busy).expect("works"),
        Upkeep::WantsIdle
    );
    assert!(log().outstanding() > PASSIVE_FRAMES, "not while busy");
    assert_eq!(adapter.maintain(Moment::Idle).expect("works"), Upkeep::Done);
    assert_eq!(log().outstanding(), 0);
    // Batches, to be quick: one sync for each.
    while log().frames <= TRUNCATE_FRAMES {
        let batch: Vec<_> = (0..20).map(|at| write(&format!("b{at}"), &long)).collect();
        adapter
            .commit(&batch, &terms(&Quotas::none()))
            .expect("writes");
        index += 1;
        assert!(index < 10_000);
    }
    assert_eq!(adapter.maintain(Moment::Busy).expect("works"), Upkeep::Done);
    assert_eq!(log().frames, 0);
    let size = std::fs::metadata(beside(&place.path, "-wal")).expect("is there");
    assert_eq!(size.len(), 0);
}

#[test]
fn a_reading_ends_at_its_deadline() {
    let place = place();
    let adapter = open(&place.path).expect("opens");
    commit(&adapter, "k", "1").expect("writes");
    let all = [Key::parse("k").expect("good")];
    let weight = Weight::new(SystemTime::now(), usize::MAX);
    let late = adapter.get_many(&namespace(), &all, weight, Instant::now());
    assert!(matches!(late, Err(Fault::OutOfTime)), "{late:?}");
    assert_eq!(keys(&adapter).items.len(), 1, "the next one is not harmed");
}

/// Reads that follow each other without a gap, each longer than the writer's usual patience.
///
/// Here time is the fault itself: shorter reads hold nothing up, and reads that end when the writer has given
/// up would never make it wait in earnest. Nothing depends on a wake-up in time: a late one makes a read longer.
#[test]
fn the_log_is_bounded_under_readers_that_never_leave_it() {
    const HARD: i64 = 1_500;
    const READERS: u32 = 3;
    let read_time = READERS * TRUNCATE_PATIENCE;
    let place = place();
    let adapter = open(&place.path).expect("opens");
    {
        let mut writer = adapter.writer.lock();
        writer.truncate_from = 500;
        writer.hard_from = HARD;
    }
    let long = format!("\"{}\"", "x".repeat(100_000));
    commit(&adapter, "first", "1").expect("writes");
    let stop = std::sync::atomic::AtomicBool::new(false);
    let is_over = || stop.load(std::sync::atomic::Ordering::SeqCst);
    let (most, reads) = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS)
            .map(|index| {
                let (adapter, is_over) = (&adapter, &is_over);
                scope.spawn(move || {
                    // So that one begins while the others are in the middle of theirs.
                    std::thread::sleep(index * TRUNCATE_PATIENCE);
                    let mut reads = 0;
                    while !is_over() {
                        let read = adapter.readers.read(|connection| {
                            let _snapshot = connection.unchecked_transaction()?;
                            read::revision(connection)?;
                            std::thread::sleep(read_time);
                            Ok(())
                        });
                        read.expect("reads go on");
                        reads += 1;
                    }
                    reads
                })
            })
            .collect();
        let mut most = 0;
        for index in 0..200 {
            commit(&adapter, &format!("k{}", index % 40), &long).expect("writes");
            adapter.maintain(Moment::Busy).expect("works");
            let log = adapter.with_writer(|c| write::checkpoint(c, "NOOP").expect("looks"));
            most = most.max(log.frames);
        }
        stop.store(true, std::sync::atomic::Ordering::SeqCst);
        let reads: usize = readers
            .into_iter()
            .map(|r| r.join().expect("no panic"))
            .sum();
        (most, reads)
    });
    // One batch more than the bound: 25 pages of a value, and the way to them.
    assert!(most < HARD + 100, "{most} frames");
    assert!(most > 500, "they did hold it up: {most} frames");
    assert!(reads >= 3, "they did go on: {reads}");
}

/// A `sqlite3` shell with an open transaction, say.
#[test]
fn a_reader_of_another_process_keeps_the_log_long_but_nobody_waiting() {
    let place = place();
    let adapter = open(&place.path).expect("opens");
    adapter.writer.lock().hard_from = 20;
    commit(&adapter, "first", "1").expect("writes");
    let foreign = connection::for_reading(&place.path).expect("opens");
    let snapshot = foreign.unchecked_transaction().expect("begins");
    read::revision(&snapshot).expect("reads");
    let frames = || adapter.with_writer(|c| write::checkpoint(c, "NOOP").expect("looks").frames);
    while frames() <= 20 {
        commit(&adapter, "k", "1").expect("writes");
    }
    let delay = || adapter.writer.lock().hard_delay.delay;
    let not_before = || adapter.writer.lock().hard_delay.not_before;
    adapter.maintain(Moment::Busy).expect("works");
    assert_eq!(delay(), FIRST_HARD_DELAY);
    let first = not_before().expect("not at once again");
    // Its time has come: in vain again, so the next one is further away.
    adapter.writer.lock().hard_delay.not_before = Some(Instant::now());
    adapter.maintain(Moment::Busy).expect("works");
    assert_eq!(delay(), 2 * FIRST_HARD_DELAY);
    let second = not_before().expect("later");
    assert!(second > first);
    // Until then reads and writes do not wait for it.
    adapter.writer.lock().hard_delay.not_before = Some(Instant::now() + MAX_HARD_DELAY);
    adapter.maintain(Moment::Busy).expect("works");
    assert_eq!(delay(), 2 * FIRST_HARD_DELAY, "not tried");
    assert_eq!(keys(&adapter).items.len(), 2, "nobody is kept out");
    drop(snapshot);
    adapter.writer.lock().hard_delay.not_before = Some(Instant::now());
    adapter.maintain(Moment::Busy).expect("works");
    assert_eq!(frames(), 0);
    assert_eq!(adapter.writer.lock().hard_delay, HardDelay::default());
}
