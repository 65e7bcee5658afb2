use plugin_sdk::testing::TestRuntime;

use super::*;

async fn start() -> TestRuntime {
    TestRuntime::start(Notifications::default())
        .await
        .expect("starts")
}

async fn recent(core: &TestRuntime, limit: usize) -> Vec<Notification> {
    core.call("notifications.recent", &json!({ "limit": limit }))
        .await
        .expect("a list")
}

#[test]
fn the_manifest_names_the_plugin() {
    let manifest: toml::Table = include_str!("../plugin.toml")
        .parse()
        .expect("plugin.toml is TOML");
    assert_eq!(
        manifest["name"].as_str(),
        Some(Notifications::default().into_plugin().name())
    );
}

#[tokio::test(start_paused = true)]
async fn what_is_sent_is_told_and_kept_with_its_sender() {
    let core = start().await;
    let arguments = json!({ "text": "The door is open", "urgency": "warning" });
    let sent: Notification = core
        .call_as("automation", "notifications.send", &arguments, None)
        .await
        .expect("sent");
    assert_eq!(
        (sent.number, sent.urgency, sent.sender.as_str()),
        (1, Urgency::Warning, "automation")
    );
    let told = core.published("notifications.sent");
    assert_eq!(
        told[0].parse::<Notification>().expect("a notification"),
        sent
    );
    assert_eq!(recent(&core, 10).await, [sent]);
    core.shutdown().await.expect("ends");
}

#[tokio::test(start_paused = true)]
async fn the_last_hundred_are_kept_and_counting_goes_on_after_a_restart() {
    let core = start().await;
    for number in 1..=130 {
        core.call::<()>("notifications.send", &format!("number {number}"))
            .await
            .expect("sent");
    }
    core.unload().await.expect("unloaded");
    core.start_again().await.expect("started");
    core.call::<()>("notifications.send", "number 131")
        .await
        .expect("sent");
    let numbers: Vec<_> = recent(&core, 1000)
        .await
        .iter()
        .map(|found| found.number)
        .collect();
    assert_eq!(numbers, (32..=131).rev().collect::<Vec<_>>());
    assert_eq!(recent(&core, 2).await[1].text, "number 130");
    core.shutdown().await.expect("ends");
}

#[tokio::test(start_paused = true)]
async fn an_empty_message_is_refused() {
    let core = start().await;
    let error = core
        .call::<()>("notifications.send", " ")
        .await
        .expect_err("refused");
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(recent(&core, 10).await.is_empty());
    core.shutdown().await.expect("ends");
}
