//! Plugins that try to be somebody else.

use std::path::Path;
use std::process::Stdio;

use core_proto::contract::{env, metadata};
use core_tests::{Client, Hello, RawPlugin, Told};
use serde_json::{Value, json};
use tonic::Status;

use crate::{anonymous, credential, variable};

pub(crate) fn verdict(status: &Status) -> String {
    let told = Told::by(status);
    format!("{:?} {}", told.code, told.reason)
}

/// What happens to a child that tries to be somebody else.
pub(crate) async fn findings() -> Value {
    let open = RawPlugin::open(&anonymous(), Hello::ready()).await;
    let without_token = open
        .err()
        .map_or("admitted".to_owned(), |status| verdict(&status));
    let wrong = anonymous().with_token("0123456789abcdef0123456789abcdef");
    let wrong = RawPlugin::open(&wrong, Hello::ready()).await;
    let wrong_token = wrong
        .err()
        .map_or("admitted".to_owned(), |status| verdict(&status));
    // The socket is not named to children; it is easily guessed.
    let plugins = variable(env::ADDR);
    let socket = plugins
        .trim_start_matches("unix:")
        .replace("core.sock", "operator.sock");
    let program = std::env::current_exe().expect("its own program");
    let grandchild = tokio::process::Command::new(program)
        .args(["asks-as-operator", &socket])
        .env_clear()
        .stdout(Stdio::piped())
        .spawn()
        .expect("a grandchild");
    let said = grandchild.wait_with_output();
    let (itself, said) = tokio::join!(ask_as_operator(&socket), said);
    let said = said.expect("its own child").stdout;
    json!({
        "without_token": without_token,
        "wrong_token": wrong_token,
        "as_operator": itself,
        "as_operator_from_a_grandchild_with_a_cleared_environment":
            String::from_utf8_lossy(&said).trim(),
    })
}

pub(crate) async fn ask_as_operator(socket: &str) -> String {
    let client = Client::new(Path::new(socket));
    let request = core_proto::v1::PluginManagerListRequest::default();
    let answer = client.plugin_manager().list(request).await;
    answer
        .err()
        .map_or("admitted".to_owned(), |status| verdict(&status))
}

/// Where the previous run's identity is kept.
const PREVIOUS: &str = "previous.json";

/// What happens to the words of an ended run: the previous run's token, its number, and both. `None`
/// in the first run, which leaves its identity for the next one.
pub(crate) async fn replay(own_run: &str) -> Option<Value> {
    let identity = json!({ "token": variable(env::TOKEN), "run": own_run });
    let previous = std::fs::read(PREVIOUS).ok();
    std::fs::write(PREVIOUS, identity.to_string()).expect("its own directory");
    let previous: Value = serde_json::from_slice(&previous?).expect("what the previous run wrote");
    let (token, run) = (
        previous["token"].as_str()?.to_owned(),
        previous["run"].as_str()?.to_owned(),
    );
    let open = RawPlugin::open(&anonymous().with_token(&token), Hello::ready()).await;
    let opened = open
        .err()
        .map_or("accepted".to_owned(), |status| verdict(&status));
    Some(json!({
        "open with the old token": opened,
        "old run": words(&credential().presenting(metadata::RUN, &run)).await,
        "old token": words(&anonymous().with_token(&token)).await,
        "old token and run": words(&anonymous().with_token(&token).with_run(&run)).await,
    }))
}

/// What becomes of each kind of request that would change something.
async fn words(client: &Client) -> Value {
    let name = variable(env::PLUGIN);
    let of = |done: Result<(), Status>| {
        done.map_or_else(|status| verdict(&status), |()| "accepted".to_owned())
    };
    let topic = format!("{name}.stale");
    let description = core_proto::v1::ServiceDescription {
        name: topic.clone(),
        ..Default::default()
    };
    let register = core_proto::v1::ServiceRegistryRegisterRequest {
        service: Some(description),
    };
    json!({
        "publish": of(client.publish(&topic, json!({})).await.map(drop)),
        "state": of(client.set_state(&topic, "1").await.map(drop)),
        "storage": of(client.store(&name, "stale", "1").await.map(drop)),
        "register": of(client.service_registry().register(register).await.map(drop)),
    })
}
