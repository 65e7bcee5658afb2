//! So much at once.

use super::super::counters::counter;
use super::*;

#[tokio::test]
async fn subscriptions_are_bounded_and_a_closed_one_makes_room() {
    let (core, lamp) = lamp(only(Quota::Subscriptions, 2)).await;
    let client = lamp.client();
    let subscribe = async || {
        let request = v1::EventBusSubscribeRequest {
            patterns: vec!["lamp.>".to_owned()],
            ..Default::default()
        };
        client.event_bus().subscribe(request).await
    };
    let held = (
        subscribe().await.expect("room"),
        subscribe().await.expect("room"),
    );
    let refused = subscribe().await.expect_err("two are there");
    let told = Told::by(&refused);
    told.is(Code::ResourceExhausted, "TOO_MANY_SUBSCRIPTIONS")
        .says("plugins.lamp.quotas.subscriptions");
    assert!(!told.retry, "nobody knows when one ends");
    drop(held.0);
    eventually!(subscribe().await.is_ok());
    core.shutdown().await;
}

#[tokio::test]
async fn connections_are_bounded_and_a_closed_one_makes_room() {
    let (core, lamp) = lamp(only(Quota::Connections, 2)).await;
    let get = async |client: &Client| client.state("lamp.k").await;
    let second = lamp.client().another_connection();
    get(&second).await.expect("room");
    get(&lamp.client()).await.expect("the first one");
    let third = lamp.client().another_connection();
    for _ in 0..3 {
        let refused = get(&third).await.expect_err("two are there");
        let told = Told::by(&refused);
        told.is(Code::ResourceExhausted, "TOO_MANY_CONNECTIONS")
            .says("plugins.lamp.quotas.connections");
        assert!(told.retry);
    }
    // It is nobody's: strangers' are the first to go.
    assert_eq!(
        counter(core.operator(), "connections_unidentified").await,
        1
    );
    let channel = RawPlugin::open(&core.remote("lamp").another_connection(), Hello::ready()).await;
    Told::by(&channel.expect_err("neither for a channel"))
        .is(Code::ResourceExhausted, "TOO_MANY_CONNECTIONS");
    let used = async || {
        let shown = quotas_of(&core, "lamp").await;
        let shown = shown.iter().find(|quota| quota.name == "connections");
        shown.expect("there").used
    };
    assert_eq!(used().await, 2);
    drop(second);
    eventually!(get(&third).await.is_ok());
    assert_eq!(used().await, 2);
    core.shutdown().await;
}

#[tokio::test]
async fn requests_in_flight_count_together_whatever_they_are_and_however_they_travel() {
    let core = TestCore::builder()
        .plugin(Declared::remote("door"))
        .plugin(
            Declared::remote("lamp")
                .may_call("door.>")
                .quota(Quota::RequestsInFlight, 1),
        )
        .start()
        .await;
    let door = RawPlugin::open(
        &core.remote("door"),
        Hello::ready().services(&["door.open"]),
    )
    .await;
    let mut door = door.expect("admitted");
    let lamp = RawPlugin::open(&core.remote("lamp"), Hello::ready()).await;
    let mut lamp = lamp.expect("admitted");
    for name in ["door", "lamp"] {
        core.operator().until_phase(name, "ready").await;
    }
    let client = lamp.client();
    let calling = client.clone();
    let call = tokio::spawn(async move { calling.call("door.open", json!({})).await });
    let arrived = door.expect_call().await;
    for used in uses() {
        let Err(refusal) = unary(&client, &used).await else {
            panic!("{} is one too many", used.method)
        };
        assert_eq!(refusal.reason, "CALLER_BUSY", "{refusal:?}");
        assert!(refusal.wait.is_some() && refusal.message.contains("requests_in_flight"));
        // What is done as soon as it is read is never in flight.
        let at_once = [
            "EventBus/",
            "StateEngine/",
            "ServiceRegistry/Register",
            "ServiceRegistry/Unregister",
        ];
        let at_once = at_once.iter().any(|done| used.method.starts_with(done));
        if !at_once {
            let refusal = framed(&mut lamp, &used).await.expect_err("one too many");
            assert_eq!(refusal.reason, "CALLER_BUSY", "{} {refusal:?}", used.method);
        }
    }
    door.answer(arrived.call_id, json!(1)).await;
    within("answered", call).await.unwrap().expect("a result");
    client.state("lamp.k").await.expect("room");
    core.shutdown().await;
}
