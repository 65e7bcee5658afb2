//! What is left of durable data when a core, or `core-server restore`, is killed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use core_proto::v1;
use core_server::storage::{self, Key, Namespace, OpenError, Storage};
use core_tests::{Client, CoreProcess, Outsider, Told, eventually};
use serde_json::{Value, json};
use tokio::process::Command;
use tonic::Code;

use super::reconnect::free_port;
use super::{CORE, PLAYER};

/// Writers at once; several share one transaction.
const WRITERS: usize = 16;
/// Acknowledged writes of a round before the core is killed in the middle of the next ones.
const WRITES_BEFORE_THE_KILL: usize = 200;
/// The token of the plugin that watches.
const TOKEN: &str = "mirror-mirror-mirror-mirror-mirror-mirror";
/// The calls by which a restore changes files.
const CHANGES: [&str; 8] = [
    "ftruncate",
    "pwrite64",
    "fsync",
    "fdatasync",
    "unlink",
    "linkat",
    "rename",
    "renameat2",
];

#[tokio::test]
async fn what_was_acknowledged_is_there_after_the_core_was_killed() {
    let mut core = CoreProcess::new(CORE, "");
    // The ledger: key -> value of every write that was acknowledged, over all rounds.
    let ledger: Arc<Mutex<BTreeMap<String, String>>> = Arc::default();
    let mut revision = 0;
    for round in 0..3 {
        let operator = core.start().await;
        let acknowledged = ledger.lock().expect("no panic inside").clone();
        for (key, value) in acknowledged {
            let stored = operator.stored("ledger", &key).await.expect("read");
            assert_eq!(
                stored,
                Some(value),
                "{key} was acknowledged before the kill"
            );
        }
        let first = operator
            .store("ledger", "round", &round.to_string())
            .await
            .expect("written");
        assert!(first > revision, "revisions rise over restarts");
        revision = first;
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (ledger, operator) = (Arc::clone(&ledger), operator.clone());
                tokio::spawn(async move {
                    for number in 0.. {
                        let key = format!("{round}/{writer}/{number}");
                        let value = json!({ "round": round, "number": number }).to_string();
                        if operator.store("ledger", &key, &value).await.is_err() {
                            return;
                        }
                        ledger.lock().expect("no panic inside").insert(key, value);
                    }
                })
            })
            .collect();
        let goal = (round + 1) * WRITES_BEFORE_THE_KILL;
        eventually!(ledger.lock().expect("no panic inside").len() >= goal);
        core.kill().await;
        for writer in writers {
            core_tests::within("a writer notices", writer)
                .await
                .expect("no panic");
        }
    }
    let operator = core.start().await;
    let ledger = ledger.lock().expect("no panic inside").clone();
    assert!(ledger.len() >= 3 * WRITES_BEFORE_THE_KILL);
    for (key, value) in ledger {
        assert_eq!(
            operator.stored("ledger", &key).await.expect("read"),
            Some(value),
            "{key}"
        );
    }
    core.kill().await;
}

#[tokio::test]
async fn a_backup_is_verified_and_restored_by_the_core_itself() {
    let mut core = CoreProcess::new(CORE, "");
    let operator = core.start().await;
    let before = operator.store("notes", "a", "1").await.expect("written");
    let mut admin = operator.storage_admin();
    let backup = v1::StorageAdminBackupRequest::default();
    let made = admin.backup(backup).await.expect("made").into_inner();
    assert_eq!(made.revision, before);
    let checked = admin.check(v1::StorageAdminCheckRequest {}).await;
    assert_eq!(checked.expect("checked").into_inner().findings, [""; 0]);
    let late = operator.store("notes", "a", "2").await.expect("written");

    let directory = core.directory().to_owned();
    let run = async |arguments: &[&str]| {
        let command = tokio::process::Command::new(CORE)
            .args(arguments)
            .current_dir(&directory)
            .output();
        core_tests::within("the command ends", command)
            .await
            .expect("runs")
    };
    let verified = run(&["verify", &made.path]).await;
    assert_eq!(verified.status.code(), Some(0), "{verified:?}");
    let said = String::from_utf8_lossy(&verified.stdout).into_owned();
    assert!(
        said.contains("1 keys") && said.contains("SHA-256"),
        "{said}"
    );
    let refused = run(&["restore", &made.path]).await;
    assert_eq!(
        refused.status.code(),
        Some(70),
        "the core runs: {refused:?}"
    );
    core.kill().await;
    let restored = run(&["restore", &made.path]).await;
    assert_eq!(restored.status.code(), Some(0), "{restored:?}");

    let operator = core.start().await;
    let stored = operator.stored("notes", "a").await.expect("read");
    assert_eq!(stored.as_deref(), Some("1"));
    let next = operator.store("notes", "b", "1").await.expect("written");
    assert!(next > late, "{next} is after all that was ever answered");
    core.kill().await;
    std::fs::write(directory.join("data/runtime.db"), [7; 8_192]).expect("harmed");
    let damaged = run(&["verify"]).await;
    assert_eq!(damaged.status.code(), Some(70), "{damaged:?}");
}

/// Strace kills it before each of its calls that change files: each kind of call is counted by itself.
#[tokio::test]
async fn a_restore_that_is_killed_at_any_step_leaves_the_old_store_or_the_new_one() {
    if Command::new("strace").arg("-V").output().await.is_err() {
        eprintln!("skipped: strace is not installed");
        return;
    }
    let mut core = CoreProcess::new(CORE, "");
    let operator = core.start().await;
    operator.store("notes", "a", "1").await.expect("written");
    let mut admin = operator.storage_admin();
    let backup = v1::StorageAdminBackupRequest::default();
    let backup = admin.backup(backup).await.expect("made").into_inner().path;
    operator.store("notes", "a", "2").await.expect("written");
    // With a log that is not in the database yet.
    core.kill().await;
    let directory = core.directory();
    let (data, before) = (directory.join("data"), directory.join("before"));
    copy(&data, &before);

    let (mut old, mut new, mut unfinished) = (0, 0, 0);
    for call in CHANGES {
        for nth in 1.. {
            std::fs::remove_dir_all(&data).expect("removed");
            copy(&before, &data);
            let mut restore = Command::new("strace");
            restore
                .args(["-f", "-qq", "-o", "/dev/null", "-e"])
                .arg(format!("trace={call}"))
                .arg("-e")
                .arg(format!("inject={call}:signal=KILL:when={nth}"))
                .args([CORE, "restore", &backup])
                .current_dir(directory);
            let ended = core_tests::within("it ends", restore.output()).await;
            let ended = ended.expect("strace runs");
            if ended.status.success() {
                break;
            }
            let said = String::from_utf8_lossy(&ended.stderr);
            assert!(said.is_empty(), "not killed: {said}");
            match which(&data.join("runtime.db")).await {
                Ok(Which::Old) => old += 1,
                Ok(Which::New) => new += 1,
                Err(OpenError::RestoreUnfinished { left, .. }) => {
                    unfinished += 1;
                    ways_out(directory, &left, &backup, &format!("{call} {nth}")).await;
                }
                Err(error) => panic!("killed at {call} {nth}: {error}"),
            }
        }
    }
    assert!(
        old > 0 && unfinished > 10 && new > 0,
        "{old} old, {new} new, {unfinished} unfinished"
    );
    let found = which(&data.join("runtime.db")).await.expect("opens");
    assert_eq!(found, Which::New, "it was through in the end");
}

/// Both that the message of an unfinished restore names.
async fn ways_out(directory: &Path, left: &Path, backup: &str, killed: &str) {
    let undone = directory.join("undone");
    copy(&directory.join("data"), &undone);
    put_back(&undone, left.file_name().expect("a file"));
    let found = which(&undone.join("runtime.db")).await.expect("opens");
    assert_eq!(found, Which::Old, "killed at {killed}");
    std::fs::remove_dir_all(&undone).expect("removed");
    let mut again = Command::new(CORE);
    again.args(["restore", backup]).current_dir(directory);
    let again = core_tests::within("it ends", again.output()).await;
    let again = again.expect("runs");
    assert!(again.status.success(), "killed at {killed}: {again:?}");
    let found = which(&directory.join("data/runtime.db"))
        .await
        .expect("opens");
    assert_eq!(found, Which::New, "killed at {killed}");
}

/// As the message of an unfinished restore says.
fn put_back(data: &Path, restoring: &std::ffi::OsStr) {
    let log = data.join("runtime.db-wal");
    for entry in std::fs::read_dir(data).expect("read") {
        let path = entry.expect("read").path();
        let name = path.file_name().expect("a file").to_string_lossy();
        if name.starts_with("runtime.db.replaced-") && name.ends_with("-wal") && !log.exists() {
            std::fs::rename(&path, &log).expect("put back");
        }
    }
    std::fs::remove_file(data.join(restoring)).expect("removed");
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("made");
    for entry in std::fs::read_dir(from).expect("read") {
        let entry = entry.expect("read");
        let (path, kind) = (entry.path(), entry.file_type().expect("known"));
        let place: PathBuf = to.join(entry.file_name());
        if kind.is_dir() {
            copy(&path, &place);
        } else if kind.is_file() {
            std::fs::copy(path, place).expect("copied");
        }
    }
}

#[derive(Debug, PartialEq)]
enum Which {
    Old,
    New,
}

/// Opens a database as a core does, and says which it is: by what it holds and by its revision, which a
/// restore raises.
async fn which(database: &Path) -> Result<Which, OpenError> {
    let config = storage::Config::sqlite(database);
    let storage = Storage::open(config.open_adapter()?, &config)?;
    let namespace = Namespace::parse("notes").expect("good");
    let key = Key::parse("a").expect("good");
    let entry = storage.get(&namespace, &key).await.expect("read");
    let raised = storage.revision().0 > 1 << 40;
    storage.close().await;
    let value = entry.as_ref().map(|entry| entry.value.as_str());
    Ok(match (value, raised) {
        (Some("2"), false) => Which::Old,
        (Some("1"), true) => Which::New,
        other => panic!("{}: {other:?} is neither", database.display()),
    })
}

/// All that the plugin knows from its watch, if it knows all.
async fn mirrored(operator: &Client) -> Option<BTreeMap<String, Value>> {
    let told = operator.call("mirror.content", json!({})).await.ok()?;
    assert_eq!(told["out_of_order"], json!([]));
    serde_json::from_value(told["content"].clone()).ok()
}

#[tokio::test]
async fn a_watcher_knows_exactly_what_is_stored_again_after_the_core_was_killed() {
    let port = free_port();
    let core_toml = format!(
        "[listen]\ntcp = [\"127.0.0.1:{port}\"]\n[plugins.mirror]\ntoken_env = \"MIRROR_TOKEN\"\n"
    );
    let mut core = CoreProcess::new(CORE, &core_toml)
        .env("MIRROR_TOKEN", TOKEN)
        .plugin("mirror", "name = \"mirror\"\nrun.kind = \"remote\"\n");
    let mut operator = core.start().await;
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    let _mirror = Outsider::start_with(PLAYER, &["mirror"], &address.into(), TOKEN, "mirror");
    operator.until_phase("mirror", "ready").await;
    let stored = async |operator: &Client| {
        let request = v1::StorageScanRequest {
            namespace: "mirror".to_owned(),
            page_size: 1_000,
            ..Default::default()
        };
        let page = operator.storage().scan(request).await.expect("read");
        let entry = |entry: v1::StorageEntry| {
            let value = serde_json::from_slice(&entry.value).expect("JSON");
            (entry.key, value)
        };
        let entries = page.into_inner().entries.into_iter().map(entry);
        entries.collect::<BTreeMap<String, Value>>()
    };
    for round in 0..3 {
        operator
            .store("mirror", "goes", "true")
            .await
            .expect("written");
        eventually!(mirrored(&operator).await == Some(stored(&operator).await));
        // A watch without an SDK, to know its place.
        let request = v1::StorageWatchRequest {
            namespace: "mirror".to_owned(),
            ..Default::default()
        };
        let watch = operator.storage().watch(request.clone()).await;
        let begun = watch.expect("a watch").into_inner().message().await;
        let from = begun.expect("told").expect("not the end").cursor;

        let writer = {
            let operator = operator.clone();
            tokio::spawn(async move {
                for number in 0.. {
                    let key = format!("k{}", number % 50);
                    let value = format!("[{round}, {number}]");
                    if operator.store("mirror", &key, &value).await.is_err() {
                        return;
                    }
                }
            })
        };
        let known = async || mirrored(&operator).await.unwrap_or_default().len();
        eventually!(known().await > 20);
        core.kill().await;
        core_tests::within("the writer notices", writer)
            .await
            .expect("no panic");
        operator = core.start().await;
        // What happens before the plugin is back.
        let gone = v1::StorageDeleteRequest {
            namespace: "mirror".to_owned(),
            key: "goes".to_owned(),
            ..Default::default()
        };
        operator.storage().delete(gone).await.expect("deleted");
        let resumed = v1::StorageWatchRequest { from, ..request };
        let refused = operator.storage().watch(resumed).await;
        let refused = refused.expect_err("the changes of another time");
        Told::by(&refused).is(Code::OutOfRange, "COMPACTED");
        operator.until_phase("mirror", "ready").await;
        eventually!(mirrored(&operator).await == Some(stored(&operator).await));
    }
    core.kill().await;
}
