//! A whole home in one file: made while the core runs, torn, altered, and put in place on a machine that knows
//! nothing of it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use core_proto::v1;
use core_server::config::Manage;
use core_tests::{
    Client, CoreProcess, Declared, Finished, Hello, RawPlugin, TestCore, Told, finished,
};
use core_tls::ClientTls;
use tonic::Code;

use super::{CORE, CORECTL};

const CONFIGURATION: &str = "[listen]\ntls = [\"127.0.0.1:0\"]\n";

fn tls_of(addresses: &[String]) -> std::net::SocketAddr {
    let found = addresses.iter().find_map(|text| text.strip_prefix("tls:"));
    found.expect("it speaks TLS").parse().expect("an address")
}

async fn tls_address(operator: &Client) -> std::net::SocketAddr {
    let request = v1::IntrospectionGetInfoRequest::default();
    let info = operator.introspection().get_info(request).await;
    tls_of(&info.expect("told").into_inner().addresses)
}

async fn corectl(core: &CoreProcess, arguments: &[&str]) -> Finished {
    finished(CORECTL, arguments, core.directory()).await
}

#[tokio::test]
async fn a_home_that_burnt_down_goes_on_elsewhere_with_its_plugins_and_data() {
    let mut old = CoreProcess::new(CORE, CONFIGURATION);
    let operator = old.start().await;
    operator.store("notes", "a", "1").await.expect("written");
    let request = v1::AccessInviteRequest {
        plugin: "shed".to_owned(),
        ..Default::default()
    };
    let invited = operator.access().invite(request).await.expect("invited");
    let join = invited.into_inner().join.parse().expect("a join string");
    let (enrolled, _) = core_tls::join(&join).await.expect("joined");
    let request = v1::AccessCreateTokenRequest {
        plugin: "lamp".to_owned(),
        ..Default::default()
    };
    let token = operator.access().create_token(request).await.expect("made");
    let token = token.into_inner().token;

    let made = corectl(&old, &["backup", "house.tar"]).await;
    assert_eq!(made.code, Some(0), "{made:?}");
    assert!(made.stderr.contains("CA's key"), "{made:?}");
    let file = old.directory().join("house.tar");
    assert!(
        made.stdout.contains(&file.display().to_string()),
        "{made:?}"
    );
    let mode = fs::metadata(&file).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(!old.directory().join("house.tar.tmp").exists());
    let again = corectl(&old, &["backup", "house.tar"]).await;
    assert_ne!(
        again.code,
        Some(0),
        "nothing is ever overwritten: {again:?}"
    );
    let whole = old.directory().join("whole.tar");
    let key = fs::read_to_string(old.directory().join("data/security/ca.key")).expect("there");
    // What the house did after its backup is lost with it.
    operator.store("notes", "a", "2").await.expect("written");
    fs::rename(&file, &whole).expect("carried away");
    old.kill().await;

    let mut new = CoreProcess::new(CORE, "");
    fs::remove_file(new.directory().join("core.toml")).expect("a machine without anything");
    let whole = whole.display().to_string();
    let verified = finished(CORE, &["verify", &whole], new.directory()).await;
    assert_eq!(verified.code, Some(0), "{verified:?}");
    assert!(
        verified.stdout.contains("data/security/ca.key: "),
        "{verified:?}"
    );
    let restored = finished(CORE, &["restore", &whole], new.directory()).await;
    assert_eq!(restored.code, Some(0), "{restored:?}");
    for said in [&made, &verified, &restored] {
        let said = format!("{}{}", said.stdout, said.stderr);
        for secret in [&token, key.lines().nth(1).expect("a line")] {
            assert!(!said.contains(secret), "{said}");
        }
    }
    let configuration = fs::read_to_string(new.directory().join("core.toml"));
    assert_eq!(configuration.expect("there"), CONFIGURATION);

    let operator = new.start().await;
    let stored = operator.stored("notes", "a").await.expect("read");
    assert_eq!(stored.as_deref(), Some("1"));
    let address = tls_address(&operator).await;
    let identity = (
        enrolled.certificate_pem.as_bytes(),
        enrolled.key_pem.as_bytes(),
    );
    let ca = enrolled.ca_pem.as_bytes();
    let certificate = ClientTls::from_pem(ca, Some(identity)).expect("good");
    let anybody = ClientTls::from_pem(ca, None).expect("good");
    for client in [
        Client::over_tls(address, certificate),
        Client::over_tls(address, anybody).with_token(&token),
    ] {
        let plugin = RawPlugin::open(&client, Hello::ready()).await;
        plugin.expect("the same plugins are let in, by the same CA");
    }
    new.kill().await;
}

#[tokio::test]
async fn a_damaged_or_misplaced_home_is_refused_and_what_is_there_goes_on() {
    let mut core = CoreProcess::new(CORE, CONFIGURATION);
    let operator = core.start().await;
    operator.store("notes", "a", "1").await.expect("written");
    let directory = core.directory().to_owned();
    let token = corectl(&core, &["tokens", "create", "--operator"]).await;
    assert_eq!(token.code, Some(0), "{token:?}");
    let made = corectl(&core, &["backup", "house.tar", "--json"]).await;
    let made: serde_json::Value = serde_json::from_str(&made.stdout).expect("JSON");
    assert_eq!(
        made["path"],
        directory.join("house.tar").display().to_string()
    );
    let in_use = finished(CORE, &["restore", "house.tar"], &directory).await;
    assert_eq!(in_use.code, Some(70), "the core runs: {in_use:?}");
    assert!(in_use.stderr.contains("stop the core"), "{in_use:?}");
    operator.store("notes", "a", "2").await.expect("goes on");
    core.kill().await;

    let whole = fs::read(directory.join("house.tar")).expect("there");
    let at = |needle: &[u8]| {
        let found = whole.windows(needle.len()).position(|part| part == needle);
        found.expect("in it")
    };
    let mut altered = whole.clone();
    let digest = at(b"\"digest\"");
    altered[at(b"-----BEGIN PRIVATE KEY-----") + 40] ^= 1;
    for (name, bytes, part) in [
        ("altered.tar", &altered[..], "data/security/ca.key"),
        (
            "torn.tar",
            &whole[..digest],
            "data/security/credentials.json",
        ),
    ] {
        fs::write(directory.join(name), bytes).expect("written");
        for command in ["verify", "restore"] {
            let refused = finished(CORE, &[command, name], &directory).await;
            assert_eq!(refused.code, Some(70), "{command}: {refused:?}");
            assert!(refused.stderr.contains(part), "{command}: {refused:?}");
        }
    }
    let operator = core.start().await;
    let stored = operator.stored("notes", "a").await.expect("read");
    assert_eq!(stored.as_deref(), Some("2"), "nothing was touched");
    core.kill().await;
}

/// The machine loses its power in the middle of a restore: the core that starts next finishes it.
#[tokio::test]
async fn a_core_finishes_a_restore_that_was_interrupted() {
    let mut core = CoreProcess::new(CORE, CONFIGURATION);
    let operator = core.start().await;
    operator.store("notes", "a", "1").await.expect("written");
    let made = corectl(&core, &["backup", "house.tar"]).await;
    assert_eq!(made.code, Some(0), "{made:?}");
    operator.store("notes", "a", "2").await.expect("written");
    core.kill().await;
    let directory = core.directory().to_owned();
    // The database cannot be put in place: the restore has begun and cannot end.
    let in_the_way = directory.join("data/runtime.db.restoring");
    fs::create_dir_all(in_the_way.join("full")).expect("made");
    let broken_off = finished(CORE, &["restore", "house.tar"], &directory).await;
    assert_eq!(broken_off.code, Some(70), "{broken_off:?}");
    assert!(directory.join("data/restoring").exists(), "{broken_off:?}");
    fs::remove_dir_all(&in_the_way).expect("made room");
    let operator = core.start().await;
    let stored = operator.stored("notes", "a").await.expect("read");
    assert_eq!(stored.as_deref(), Some("1"));
    assert!(!directory.join("data/restoring").exists());
    assert!(
        core.log().contains("interrupted restore is in place"),
        "{}",
        core.log()
    );
    core.kill().await;
}

/// As above, but the home goes to another data directory than the next core would look into.
#[tokio::test]
async fn a_core_finishes_a_restore_into_another_data_directory_and_says_so_in_the_audit_log() {
    let configuration = "data_dir = \"elsewhere\"\n[listen]\nruntime_dir = \"data/run\"\n";
    let mut old = CoreProcess::new(CORE, configuration);
    let operator = old.start().await;
    operator.store("notes", "a", "1").await.expect("written");
    let made = corectl(&old, &["backup", "house.tar"]).await;
    assert_eq!(made.code, Some(0), "{made:?}");
    old.kill().await;

    let mut new = CoreProcess::new(CORE, "");
    let directory = new.directory().to_owned();
    let archive = old.directory().join("house.tar").display().to_string();
    let in_the_way = directory.join("elsewhere/runtime.db.restoring");
    fs::create_dir_all(in_the_way.join("full")).expect("made");
    let only_ours = fs::Permissions::from_mode(0o700);
    fs::set_permissions(directory.join("elsewhere"), only_ours).expect("ours");
    let broken_off = finished(CORE, &["restore", &archive], &directory).await;
    assert_eq!(broken_off.code, Some(70), "{broken_off:?}");
    assert!(
        broken_off.stderr.contains("--keep-configuration"),
        "{broken_off:?}"
    );
    assert!(directory.join("elsewhere/restoring").exists());
    // The configuration as it was before the power went.
    fs::write(directory.join("core.toml"), "").expect("written");
    // Its disk is not there yet.
    fs::rename(directory.join("elsewhere"), directory.join("away")).expect("there");
    let refused = finished(CORE, &[], &directory).await;
    assert_eq!(refused.code, Some(70), "{refused:?}");
    let elsewhere = directory.join("elsewhere").display().to_string();
    assert!(refused.stderr.contains(&elsewhere), "{refused:?}");
    assert!(!directory.join("data").exists(), "nothing was begun");
    fs::rename(directory.join("away"), directory.join("elsewhere")).expect("mounted");
    fs::remove_dir_all(&in_the_way).expect("made room");

    let operator = new.start().await;
    let stored = operator.stored("notes", "a").await.expect("read");
    assert_eq!(stored.as_deref(), Some("1"), "{}", new.log());
    let audit = fs::read_to_string(directory.join("elsewhere/security/audit.jsonl"));
    let audit = audit.expect("there");
    let line = audit.lines().find(|line| line.contains("\"restored\""));
    let line: serde_json::Value = serde_json::from_str(line.expect(&audit)).expect("JSON");
    let resource = line["resource"].as_str().expect("text");
    assert!(resource.contains(&archive), "{line}");
    let own = rustix::process::geteuid().as_raw();
    assert_eq!(line["operator"], format!("restore by uid {own}"), "{line}");
    new.kill().await;
}

#[tokio::test]
async fn root_restores_no_home_of_a_service_and_is_told_who_does() {
    const SERVICE: u32 = 64_322;
    let reachable = Path::new(CORE).ancestors().skip(1).all(|directory| {
        let mode = fs::metadata(directory).map(|metadata| metadata.permissions().mode());
        mode.is_ok_and(|mode| mode & 0o001 != 0)
    });
    if !(rustix::process::geteuid().is_root() && reachable) {
        eprintln!(
            "SKIPPED: needs root, and another user who can reach the programs of these tests"
        );
        return;
    }
    let mut core = CoreProcess::new(CORE, "operators = [0]\n").user(SERVICE);
    let operator = core.start().await;
    operator.store("notes", "a", "1").await.expect("written");
    let made = corectl(&core, &["backup", "house.tar"]).await;
    assert_eq!(made.code, Some(0), "{made:?}");
    core.kill().await;
    let directory = core.directory().to_owned();
    let restored = finished(CORE, &["restore", "house.tar"], &directory).await;
    assert_ne!(restored.code, Some(0), "{restored:?}");
    assert!(restored.stderr.contains("sudo -u '#64322'"), "{restored:?}");
    let operator = core.start().await;
    let stored = operator.stored("notes", "a").await.expect("read");
    assert_eq!(stored.as_deref(), Some("1"), "all is as it was");
    core.kill().await;
}

#[tokio::test]
async fn what_cannot_be_in_a_backup_refuses_it_by_name() {
    let mut core = CoreProcess::new(CORE, CONFIGURATION);
    core.start().await;
    let link = core.directory().join("data/security/elsewhere.key");
    std::os::unix::fs::symlink("/etc/hostname", &link).expect("linked");
    let refused = corectl(&core, &["backup", "house.tar"]).await;
    assert_eq!(refused.code, Some(8), "{refused:?}");
    let link = link.file_name().and_then(|name| name.to_str());
    for part in [link.expect("text"), "symbolic link", "put the file itself"] {
        assert!(refused.stderr.contains(part), "{part}: {refused:?}");
    }
    assert!(!core.directory().join("house.tar").exists());
    core.kill().await;
}

#[tokio::test]
async fn a_plugin_may_back_up_the_store_and_never_the_keys() {
    let mut keeper = Declared::remote("keeper");
    keeper.manifest_mut().permissions.manage = vec![Manage::BackUpStorage];
    let core = TestCore::builder().sqlite().plugin(keeper).start().await;
    let keeper = RawPlugin::open(&core.remote("keeper"), Hello::ready())
        .await
        .expect("admitted");
    let request = |home| v1::StorageAdminBackupRequest {
        home,
        ..Default::default()
    };
    let mut admin = keeper.client().storage_admin();
    let made = admin.backup(request(false)).await.expect("the store alone");
    assert!(Path::new(&made.into_inner().path).exists());
    let refused = admin.backup(request(true)).await.expect_err("keys");
    Told::by(&refused).is(Code::PermissionDenied, "NOT_ALLOWED");
    let backups = fs::read_dir(core.directory().join("data/backups")).expect("there");
    let names: Vec<_> = backups
        .map(|entry| entry.expect("readable").file_name())
        .filter(|name| name.to_string_lossy().contains(".tar"))
        .collect();
    assert!(names.is_empty(), "{names:?}");
    core.shutdown().await;
}
