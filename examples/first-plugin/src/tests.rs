use plugin_sdk::testing::TestRuntime;

use super::*;

#[tokio::test(start_paused = true)]
async fn it_greets_and_says_so() -> Result {
    let core = TestRuntime::start(Greeter).await?;
    let answer: String = core
        .call("greeter.hello", &json!({ "name": "Ann" }))
        .await?;
    assert_eq!(answer, "Hello, Ann!");
    let events = core.wait_published("greeter.greeted", 1).await?;
    assert_eq!(events[0].json()?, json!({ "name": "Ann" }));
    core.shutdown().await
}
