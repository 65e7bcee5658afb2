//! Another core on the same data: up from the release before, and back to it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use core_proto::v1;
use core_proto::v1::storage_client::StorageClient;
use rusqlite::Connection;
use rustix::process::Signal;
use tonic::transport::Channel;

use crate::core_process::Core;

/// What a core with schema 1 left behind. A copy, not the core's own: this is how such databases are,
/// whatever becomes of the code that made them.
const SCHEMA_1: &str = "
    PRAGMA journal_mode = WAL;
    PRAGMA application_id = 0x436F5274;
    PRAGMA user_version = 1;
    CREATE TABLE entry (
        namespace TEXT NOT NULL,
        key TEXT NOT NULL,
        value TEXT NOT NULL,
        revision INTEGER NOT NULL,
        updated_at INTEGER NOT NULL,
        PRIMARY KEY (namespace, key)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE store (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        revision INTEGER NOT NULL
    ) STRICT;
    INSERT INTO store (id, revision) VALUES (1, 9);
    INSERT INTO entry VALUES ('devices', 'lamp', '{\"level\":42}', 7, 1760000000000000),
                             ('devices', 'name', '\"hall\"', 9, 1760000000000000);
";
const LAMP: &str = "{\"level\":42}";

#[tokio::test]
async fn an_upgrade_of_the_storage_keeps_everything_and_can_be_taken_back() {
    let mut core = Core::new();
    let (database, copy) = (
        core.path("data/runtime.db"),
        core.path("data/runtime.db.1.bak"),
    );
    fs::create_dir(core.path("data")).expect("a directory");
    fs::set_permissions(core.path("data"), fs::Permissions::from_mode(0o700)).expect("set");
    let old = Connection::open(&database).expect("made");
    old.execute_batch(SCHEMA_1).expect("filled");
    old.close().expect("closed");
    fs::set_permissions(&database, fs::Permissions::from_mode(0o600)).expect("set");

    // Up: all is there, and goes on.
    let operator = core.boot().await;
    assert_eq!(get(&operator, "lamp").await, LAMP);
    let revision = set(&operator, "after", "1").await;
    assert_eq!(revision, 10, "it counts on");
    stop(&mut core);
    assert!(schema(&database) > 1);
    assert_eq!(core.run(&["verify"]).code, Some(0));

    // Back, as docs/how-to/upgrade.md says: the copy takes the place of the database. It is what the
    // core before knows, and lacks only what came after.
    fs::rename(&database, core.path("data/newer.db")).expect("moved");
    fs::rename(&copy, &database).expect("moved");
    assert_eq!(schema(&database), 1);
    assert_eq!(as_the_core_before_reads(&database), (LAMP.to_owned(), 9));

    // And up again.
    let operator = core.boot().await;
    assert_eq!(get(&operator, "lamp").await, LAMP);
    assert!(absent(&operator, "after").await, "it came after the copy");
    stop(&mut core);
    assert_eq!(schema(&copy), 1, "there is a copy again");
}

async fn get(operator: &Channel, key: &str) -> String {
    let entry = read(operator, key).await.expect("it is there");
    String::from_utf8(entry.value.to_vec()).expect("JSON is text")
}

async fn absent(operator: &Channel, key: &str) -> bool {
    read(operator, key).await.is_none()
}

async fn read(operator: &Channel, key: &str) -> Option<v1::StorageEntry> {
    let request = v1::StorageGetRequest {
        namespace: "devices".to_owned(),
        key: key.to_owned(),
    };
    let answer = StorageClient::new(operator.clone()).get(request).await;
    answer.expect("it answers").into_inner().entry
}

async fn set(operator: &Channel, key: &str, value: &'static str) -> u64 {
    let request = v1::StorageSetRequest {
        namespace: "devices".to_owned(),
        key: key.to_owned(),
        value: value.as_bytes().into(),
        ..Default::default()
    };
    let answer = StorageClient::new(operator.clone()).set(request).await;
    answer.expect("it is written").into_inner().revision
}

fn stop(core: &mut Core) {
    core.signal(Signal::TERM);
    let end = core.end();
    assert_eq!(end.code, Some(0), "{}", end.stderr);
}

fn schema(database: &Path) -> i64 {
    let connection = Connection::open(database).expect("opens");
    let version = connection.pragma_query_value(None, "user_version", |row| row.get(0));
    version.expect("reads")
}

/// The lamp and the store's revision, asked as schema 1 has them.
fn as_the_core_before_reads(database: &Path) -> (String, i64) {
    let connection = Connection::open(database).expect("opens");
    let lamp = "SELECT value FROM entry WHERE namespace = 'devices' AND key = 'lamp'";
    let revision = "SELECT revision FROM store WHERE id = 1";
    let check = connection.pragma_query_value(None, "integrity_check", |row| row.get(0));
    assert_eq!(check, Ok("ok".to_owned()));
    (
        connection
            .query_row(lamp, [], |row| row.get(0))
            .expect("a lamp"),
        connection
            .query_row(revision, [], |row| row.get(0))
            .expect("a revision"),
    )
}
