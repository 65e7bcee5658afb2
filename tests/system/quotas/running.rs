//! In a core that runs: other limits, hostile plugins, what is noted, whom it leaves alone.

use super::*;

#[tokio::test]
async fn quotas_change_while_plugins_run_and_only_those_of_whom_is_said() {
    let (core, mut lamp) = lamp(only(Quota::StateWritesPerSecond, LIMIT)).await;
    let door = RawPlugin::open(&core.remote("door"), Hello::ready()).await;
    let door = door.expect("admitted");
    let used = uses().pop().expect("the last is of the state");
    until_refused!(unary(&lamp.client(), &used).await);
    let mut config = core.config().clone();
    let own = config
        .plugins
        .iter_mut()
        .find(|plugin| plugin.name.as_str() == "lamp");
    own.expect("declared")
        .quotas
        .set(Quota::StateWritesPerSecond, 0);
    let reloaded = core
        .runtime()
        .reload(config.clone())
        .await
        .expect("reloaded");
    assert!(reloaded.needs_restart.is_empty(), "{reloaded:?}");
    for _ in 0..20 {
        framed(&mut lamp, &used).await.expect("as much as it likes");
    }
    let writes = async || {
        for _ in 0..20 {
            door.client().set_state("door.k", "1").await?;
        }
        Ok::<_, Status>(())
    };
    Told::by(&writes().await.expect_err("like everybody"))
        .is(Code::ResourceExhausted, "RATE_LIMITED");
    let everybody = Config {
        quotas: only(Quota::StateWritesPerSecond, 1_000),
        ..config
    };
    core.runtime().reload(everybody).await.expect("reloaded");
    // What it owes is little time at the new rate; the first may come in that.
    eventually!(writes().await.is_ok());
    assert_eq!(
        core.operator().plugin("lamp").await.generation,
        1,
        "nothing was restarted"
    );
    core.shutdown().await;
}

#[tokio::test]
async fn a_plugin_that_fills_the_disk_meets_its_rate_and_then_its_room_and_harms_nobody() {
    let core = TestCore::builder()
        .plugin(Declared::remote("hostile").quota(Quota::StorageWritesPerSecond, 20))
        .plugin(Declared::remote("door"))
        .sqlite()
        .configure(|config| {
            config.limits.storage_namespace_keys = 60;
            config.limits.storage_namespace_bytes = 256 << 10;
        })
        .start()
        .await;
    let open = async |name: &str| {
        let plugin = RawPlugin::open(&core.remote(name), Hello::ready()).await;
        plugin.expect("admitted")
    };
    let (hostile, door) = (open("hostile").await, open("door").await);
    let (client, begin) = (hostile.client(), Instant::now());
    let (mut written, mut limited, mut number) = (0_u32, 0_u32, 0_u32);
    let value = format!("\"{}\"", "x".repeat(1 << 10));
    // As fast as it can, under ever new names and in all namespaces that are its own.
    let full = loop {
        number += 1;
        let namespace = format!("hostile.n{}", number % 7);
        let Err(refused) = client
            .store(&namespace, &format!("k{number}"), &value)
            .await
        else {
            written += 1;
            continue;
        };
        let told = Told::by(&refused);
        match told.reason.as_str() {
            "RATE_LIMITED" => limited += 1,
            _ => break told,
        }
        if limited.is_multiple_of(100) {
            door.client()
                .store("door", "k", "1")
                .await
                .expect("it is left alone");
        }
    };
    full.is(Code::ResourceExhausted, "QUOTA_KEYS");
    let seconds = begin.elapsed().as_secs_f64();
    assert_eq!(written, 60, "keys of one owner");
    assert!(
        f64::from(written) <= 20.0 * (seconds + 1.0),
        "{written} in {seconds} s"
    );
    assert!(
        limited > 0,
        "it was never too fast: {written} in {seconds} s"
    );
    door.client()
        .store("door", "k", "2")
        .await
        .expect("it is left alone");
    let delete = || v1::StorageDeleteRequest {
        namespace: "hostile.n1".to_owned(),
        key: "k1".to_owned(),
        ..Default::default()
    };
    eventually!(client.storage().delete(delete()).await.is_ok());
    eventually!(client.store("hostile", "again", "1").await.is_ok());
    core.shutdown().await;
}

#[tokio::test]
async fn a_flood_of_refusals_is_one_line_of_the_audit_log_and_hides_no_other_denial() {
    let (core, lamp) = lamp(only(Quota::PublishesPerSecond, 1)).await;
    let client = lamp.client();
    for _ in 0..200 {
        client.publish("lamp.on", json!(1)).await.ok();
    }
    client
        .set_state("door.k", "1")
        .await
        .expect_err("not its own");
    let path = core.directory().join("data/security/audit.jsonl");
    let lines = || {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        text.lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
            .collect::<Vec<_>>()
    };
    let with = |rule: &str| {
        let lines = lines().into_iter();
        lines
            .filter(|line| line["rule"] == rule)
            .collect::<Vec<_>>()
    };
    eventually!(!with("not_granted").is_empty(), "{:?}", lines());
    let told = with("RATE_LIMITED");
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0]["plugin"], "lamp");
    assert_eq!(told[0]["resource"], "quotas.publishes_per_second");
    assert_eq!(told[0]["decision"], "denied");
    core.shutdown().await;
}

#[tokio::test]
async fn operators_have_no_quotas_and_every_plugin_has_the_defaults() {
    let core = TestCore::builder()
        .plugin(Declared::remote("lamp"))
        .default_quotas()
        .start()
        .await;
    let limits: Vec<_> = quotas_of(&core, "")
        .await
        .iter()
        .map(|quota| (quota.plugin.clone(), quota.name.clone(), quota.limit))
        .collect();
    let expected = [
        ("publishes_per_second", 2_000),
        ("publish_bytes_per_second", 8 << 20),
        ("calls_per_second", 2_000),
        ("storage_writes_per_second", 500),
        ("storage_write_bytes_per_second", 4 << 20),
        ("storage_reads_per_second", 5_000),
        ("state_writes_per_second", 2_000),
        ("subscriptions", 64),
        ("connections", 8),
        ("requests_in_flight", 1_024),
    ];
    let expected = expected.map(|(name, limit)| ("lamp".to_owned(), name.to_owned(), limit));
    assert_eq!(limits, expected);
    let operator = core.operator();
    let batch = || v1::EventBusPublishBatchRequest {
        events: vec![event(1); 1_000],
    };
    for _ in 0..10 {
        let published = operator.event_bus().publish_batch(batch()).await;
        assert_eq!(
            published
                .expect("as much as it likes")
                .into_inner()
                .published,
            1_000
        );
    }
    core.shutdown().await;
}
