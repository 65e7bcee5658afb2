//! Services: registered, listed, described, watched.

use core_proto::v1::service_registry_watch_response::Item;
use core_proto::v1::{self, ServiceDescription};
use core_tests::{Declared, Hello, RawPlugin, TestCore, Told, within};
use tonic::Code;

fn register(name: &str) -> v1::ServiceRegistryRegisterRequest {
    let service = ServiceDescription {
        name: name.to_owned(),
        summary: "switches one lamp on".to_owned(),
        idempotent: true,
        ..Default::default()
    };
    v1::ServiceRegistryRegisterRequest {
        service: Some(service),
    }
}

async fn describe(
    client: &core_tests::Client,
    name: &str,
) -> Result<v1::ServiceInfo, tonic::Status> {
    let request = v1::ServiceRegistryDescribeRequest {
        name: name.to_owned(),
    };
    let answer = client.service_registry().describe(request).await?;
    Ok(answer.into_inner().service.expect("a service"))
}

#[tokio::test]
async fn a_service_is_registered_described_listed_and_gone_with_its_run() {
    let core = TestCore::builder()
        .plugin(Declared::remote("lamp"))
        .start()
        .await;
    let operator = core.operator();
    let hello = Hello::ready().services(&["lamp.off"]);
    let lamp = RawPlugin::open(&core.remote("lamp"), hello)
        .await
        .expect("admitted");
    operator.until_phase("lamp", "ready").await;
    let mut watch = operator
        .service_registry()
        .watch(v1::ServiceRegistryWatchRequest::default())
        .await
        .expect("a watch")
        .into_inner();
    let mut next = async || {
        let message = within("the watch tells", watch.message()).await;
        message
            .expect("no error")
            .and_then(|message| message.item)
            .expect("an item")
    };
    assert!(matches!(next().await, Item::Service(service) if service.provider == "lamp"));
    assert_eq!(next().await, Item::SnapshotEnd(true));
    lamp.client()
        .service_registry()
        .register(register("lamp.on"))
        .await
        .expect("registered");
    let Item::Service(seen) = next().await else {
        panic!("a service was registered")
    };
    assert_eq!(seen.description.expect("described").name, "lamp.on");
    let described = describe(operator, "lamp.on").await.expect("known");
    assert!(described.available && described.registered_at.is_some());
    assert_eq!(
        described.description.expect("described").summary,
        "switches one lamp on"
    );

    let unregister = v1::ServiceRegistryUnregisterRequest {
        name: "lamp.on".to_owned(),
    };
    let existed = lamp
        .client()
        .service_registry()
        .unregister(unregister.clone())
        .await;
    assert!(existed.expect("answered").into_inner().existed);
    assert_eq!(next().await, Item::Unregistered("lamp.on".to_owned()));
    lamp.bye("enough").await;
    loop {
        match next().await {
            Item::Unregistered(name) if name == "lamp.off" => break,
            Item::Service(service) => assert!(!service.available),
            other => panic!("{other:?}"),
        }
    }
    // Known still, so that callers are told to wait instead of that it never was.
    assert!(
        !describe(operator, "lamp.off")
            .await
            .expect("known")
            .available
    );
    core.shutdown().await;
}

#[tokio::test]
async fn a_name_that_is_taken_is_refused_and_its_owner_named() {
    let core = TestCore::builder()
        .plugin(Declared::remote("lamp"))
        .plugin(Declared::remote("door"))
        .start()
        .await;
    let lamp = Hello::ready().services(&["lamp.on", "door.open", "lamp.on", "not a name"]);
    let lamp = RawPlugin::open(&core.remote("lamp"), lamp)
        .await
        .expect("admitted");
    let refused: Vec<_> = lamp
        .welcome
        .refused
        .iter()
        .map(|refused| refused.name.as_str())
        .collect();
    assert!(
        refused.contains(&"door.open") && refused.contains(&"not a name"),
        "{refused:?}"
    );
    for refused in &lamp.welcome.refused {
        assert!(!refused.error.as_ref().expect("why").message.is_empty());
    }
    let listed = core
        .operator()
        .service_registry()
        .list(v1::ServiceRegistryListRequest::default())
        .await
        .expect("a list");
    let names: Vec<_> = listed
        .into_inner()
        .services
        .into_iter()
        .filter_map(|service| Some(service.description?.name))
        .collect();
    assert_eq!(names, ["lamp.on"], "the others stand");
    core.shutdown().await;
}

#[tokio::test]
async fn a_foreign_prefix_needs_a_grant() {
    let core = TestCore::builder()
        .plugin(Declared::remote("lamp"))
        .start()
        .await;
    let lamp = RawPlugin::open(&core.remote("lamp"), Hello::ready())
        .await
        .expect("admitted");
    let mut client = lamp.client().service_registry();
    let denied = client
        .register(register("door.open"))
        .await
        .expect_err("another's");
    Told::by(&denied)
        .is(Code::PermissionDenied, "NOT_GRANTED")
        .says("door.open");
    let bad = client
        .register(register("lamp"))
        .await
        .expect_err("no verb");
    Told::by(&bad).is(Code::InvalidArgument, "BAD_SERVICE_NAME");
    core.shutdown().await;
}
