//! From nothing to a plugin on another machine, with the programs that people have: `core-server init`, the
//! core, `corectl` over TLS.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use core_proto::v1;
use core_tests::{Client, CoreProcess, Hello, RawPlugin, finished};
use core_tls::{ClientTls, CredentialsDir};
use serde_json::Value;

use super::{CORE, CORECTL};

#[tokio::test]
async fn init_a_core_an_invitation_and_a_plugin_that_comes_with_its_certificate() {
    let core = CoreProcess::new(CORE, "");
    let directory = core.directory().to_owned();
    fs::remove_file(directory.join("core.toml")).expect("nothing is there");
    let init = ["init", "--name", "localhost", "--plugin", "lamp", "--json"];
    let made = async || {
        let done = finished(CORE, &init, &directory).await;
        assert_eq!(done.code, Some(0), "{done:?}");
        let item = |line| serde_json::from_str::<Value>(line).expect("JSON");
        let items: Vec<_> = done.stdout.lines().map(item).collect();
        (items, format!("{}{}", done.stdout, done.stderr))
    };
    let (items, said) = made().await;
    assert!(items.iter().all(|item| item["made"] == true), "{said}");
    let whats: Vec<_> = items.iter().map(|item| item["what"].clone()).collect();
    let expected = [
        "configuration",
        "directory",
        "directory",
        "ca",
        "certificate",
        "operator_token",
        "plugin_token",
    ];
    assert_eq!(whats, expected);
    let security = directory.join("data/security");
    let content = |name: &str| fs::read_to_string(security.join(name)).expect("there");
    let before = ["ca.pem", "server.pem", "operator.token", "lamp.token"].map(content);
    for secret in ["operator.token", "lamp.token"] {
        assert!(!said.contains(content(secret).trim()), "a secret is shown");
        let mode = fs::metadata(security.join(secret)).expect("there");
        assert_eq!(mode.permissions().mode() & 0o777, 0o600);
    }
    let (items, said) = made().await;
    assert!(items.iter().all(|item| item["made"] == false), "{said}");
    let after = ["ca.pem", "server.pem", "operator.token", "lamp.token"].map(content);
    assert_eq!(before, after);

    // As `init` wrote it, on a port that is free.
    let mut core = core.env("RUNTIME_LISTEN__TLS", "127.0.0.1:0");
    let operator = core.start().await;
    let request = v1::IntrospectionGetInfoRequest::default();
    let info = operator.introspection().get_info(request).await;
    let addresses = info.expect("told").into_inner().addresses;
    let address = addresses.iter().find_map(|text| text.strip_prefix("tls:"));
    let address: std::net::SocketAddr = address.expect("TLS").parse().expect("an address");
    let by_name = format!("localhost:{}", address.port());
    let corectl = async |arguments: &[&str]| {
        let over_tls = [
            "--addr",
            &by_name,
            "--ca-file",
            "data/security/ca.pem",
            "--token-file",
            "data/security/operator.token",
        ];
        finished(CORECTL, &[&over_tls, arguments].concat(), &directory).await
    };
    let listed = corectl(&["plugins", "list", "--quiet"]).await;
    assert_eq!(
        (listed.code, &*listed.stdout),
        (Some(0), "lamp\n"),
        "{listed:?}"
    );
    let nobody = ["--addr", &by_name, "--ca-file", "data/security/ca.pem"];
    let arguments = [&nobody[..], &["plugins", "list"]].concat();
    let refused = finished(CORECTL, &arguments, &directory).await;
    assert_eq!(refused.code, Some(5), "{refused:?}");

    // The plugin of `init`'s token, and one that is invited.
    let ca = content("ca.pem");
    let anybody = ClientTls::from_pem(ca.as_bytes(), None).expect("a CA");
    let lamp = Client::over_tls(address, anybody).with_token(content("lamp.token").trim());
    let lamp = RawPlugin::open(&lamp, Hello::ready())
        .await
        .expect("admitted");
    assert_eq!(lamp.welcome.plugin, "lamp");
    let invited = corectl(&["plugins", "invite", "shed"]).await;
    assert_eq!(invited.code, Some(0), "{invited:?}");
    let join = invited.stdout.trim();
    assert!(
        join.starts_with("corejoin1.") && join.ends_with(&by_name),
        "{join}"
    );
    let arguments = ["join", join, "--out", "shed"];
    let joined = finished(CORECTL, &arguments, &directory).await;
    assert_eq!(joined.code, Some(0), "{joined:?}");
    assert!(joined.stdout.contains("CORE_PLUGIN=shed"), "{joined:?}");
    let again = finished(CORECTL, &["join", join, "--out", "thief"], &directory).await;
    assert_ne!(again.code, Some(0), "it was used: {again:?}");
    assert!(!directory.join("thief/key.pem").exists());
    let kept = CredentialsDir::new(directory.join("shed"));
    let (certificate, key) = (kept.certificate(), kept.key());
    let tls = ClientTls::from_files(&kept.ca(), Some((&certificate, &key))).expect("good");
    let shed = RawPlugin::open(&Client::over_tls(address, tls), Hello::ready()).await;
    assert_eq!(shed.expect("admitted").welcome.plugin, "shed");
    let renewed = finished(CORECTL, &["join", "--renew", "--out", "shed"], &directory).await;
    assert_eq!(renewed.code, Some(0), "{renewed:?}");
    let listed = corectl(&["tokens", "list", "--plugin", "shed", "--json"]).await;
    let listed: Value = serde_json::from_str(&listed.stdout).expect("JSON");
    let credentials = listed.as_array().expect("a list").iter();
    let certificates = credentials.filter(|one| one["kind"] == "certificate");
    assert_eq!(certificates.count(), 2, "{listed}");
    core.kill().await;
}
