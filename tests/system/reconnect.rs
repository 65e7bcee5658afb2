//! A plugin elsewhere, written with the SDK and connected over TCP, finds its way back by itself: to a
//! core that was killed and started again, and over a network that was cut.

use std::net::SocketAddr;

use core_proto::v1::{PluginInfo, ServiceRegistryListRequest};
use core_tests::{Client, CoreProcess, Declared, Outsider, Proxy, TestCore, eventually, within};
use serde_json::{Value, json};

use super::{CORE, ECHO};

/// The plugin's token at the core that runs as a process.
const TOKEN: &str = "lamp-lamp-lamp-lamp-lamp-lamp-lamp-lamp-lamp";

/// A port that nobody has, below those that the system gives to connections: while the core is away,
/// no connection of another test can take it.
pub(crate) fn free_port() -> u16 {
    let first = u16::try_from(std::process::id() % 10_000).expect("small") + 20_000;
    (first..32_000)
        .find(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("a free port")
}

/// What a plugin has registered: its services and its subscriptions, sorted.
fn registered(plugin: &PluginInfo) -> (Vec<String>, Vec<String>) {
    let sorted = |list: &[String]| {
        let mut list = list.to_vec();
        list.sort();
        list
    };
    (sorted(&plugin.services), sorted(&plugin.subscriptions))
}

/// All services that the core knows.
async fn known_services(operator: &Client) -> Vec<String> {
    let mut registry = operator.service_registry();
    let list = registry.list(ServiceRegistryListRequest::default()).await;
    let services = list.expect("listed").into_inner().services;
    let mut names: Vec<_> = services
        .into_iter()
        .filter_map(|service| Some(service.description?.name))
        .collect();
    names.sort();
    names
}

async fn says(operator: &Client, text: &str) {
    let answer = operator.call("lamp.say", json!({ "text": text })).await;
    let expected = json!({ "plugin": "lamp", "caller": "operator", "text": text });
    assert_eq!(answer.expect("it answers"), expected);
}

async fn publish(operator: &Client, number: u64) {
    let seq = operator.publish("scene.evening", json!(number)).await;
    seq.expect("published");
}

/// The numbers that the plugin heard, in its order.
async fn heard(operator: &Client) -> Vec<Value> {
    let notes = operator.call("lamp.heard", json!({})).await;
    let notes = notes.expect("it answers");
    let notes = notes.as_array().expect("a list").iter();
    notes.map(|note| note["data"].clone()).collect()
}

#[tokio::test]
async fn a_remote_plugin_is_ready_again_by_itself_after_the_core_was_killed() {
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let core_toml =
        format!("[listen]\ntcp = [\"{address}\"]\n[plugins.lamp]\ntoken_env = \"LAMP_TOKEN\"\n");
    let mut core = CoreProcess::new(CORE, &core_toml)
        .env("LAMP_TOKEN", TOKEN)
        .plugin(
            "lamp",
            "name = \"lamp\"\nrun.kind = \"remote\"\n\
             permissions.subscribe = [\"scene.>\"]\nconfig.hear = \"scene.>\"\n",
        );
    let operator = core.start().await;
    let lamp = Outsider::start(ECHO, &address.into(), TOKEN, "lamp");
    let before = operator.until_phase("lamp", "ready").await;
    let services = known_services(&operator).await;
    says(&operator, "before").await;
    publish(&operator, 0).await;
    eventually!(heard(&operator).await == [json!(0)]);

    for round in 1..3_u64 {
        core.kill().await;
        let operator = core.start().await;
        let after = operator.until_phase("lamp", "ready").await;
        assert_eq!(registered(&after), registered(&before));
        assert_eq!(known_services(&operator).await, services);
        says(&operator, "after").await;
        // The same process, and it hears each event once: nothing of the old run is left in it.
        let pid = operator.call("lamp.pid", json!({})).await;
        assert_eq!(pid.expect("it answers"), json!(lamp.pid()));
        publish(&operator, round).await;
        let expected: Vec<_> = (0..=round).map(|number| json!(number)).collect();
        eventually!(
            heard(&operator).await.len() >= expected.len(),
            "round {round}"
        );
        assert_eq!(heard(&operator).await, expected);
    }
}

#[tokio::test]
async fn a_remote_plugin_whose_connection_was_cut_goes_on_with_the_same_run() {
    let core = TestCore::builder()
        .tcp()
        .plugin(Declared::remote("lamp").hears_scenes())
        .start()
        .await;
    let operator = core.operator();
    let network = Proxy::before(core.tcp_address(), 0).await;
    let lamp = Outsider::start(ECHO, &network.address().into(), core.token("lamp"), "lamp");
    let before = operator.until_phase("lamp", "ready").await;
    let services = known_services(operator).await;
    says(operator, "before").await;
    publish(operator, 0).await;
    eventually!(heard(operator).await == [json!(0)]);

    for round in 1..3_u64 {
        network.cut();
        operator.until_phase("lamp", "suspended").await;
        // A caller in between waits for its return.
        let caller = operator.clone();
        let waiting = tokio::spawn(async move { says(&caller, "between").await });
        publish(operator, 2 * round - 1).await;
        network.mend();
        let after = operator.until_phase("lamp", "ready").await;
        assert_eq!(
            (after.generation, after.restarts),
            (before.generation, before.restarts)
        );
        assert_eq!(after.last_exit, None);
        within("the caller is answered", waiting)
            .await
            .expect("answered right");
        says(operator, "after").await;
        let pid = operator.call("lamp.pid", json!({})).await;
        assert_eq!(pid.expect("it answers"), json!(lamp.pid()));
        assert_eq!(known_services(operator).await, services);
        // Each event once, also the one that it could not hear while it was away.
        publish(operator, 2 * round).await;
        let expected: Vec<_> = (0..=2 * round).map(|number| json!(number)).collect();
        eventually!(
            heard(operator).await.len() >= expected.len(),
            "round {round}"
        );
        assert_eq!(heard(operator).await, expected);
        let after = operator.plugin("lamp").await;
        assert_eq!(registered(&after), registered(&before));
    }
    core.shutdown().await;
}
