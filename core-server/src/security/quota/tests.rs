use super::*;

const RATES: [Quota; 6] = [
    Quota::PublishesPerSecond,
    Quota::PublishBytesPerSecond,
    Quota::CallsPerSecond,
    Quota::StorageWritesPerSecond,
    Quota::StorageReadsPerSecond,
    Quota::StateWritesPerSecond,
];
const HELD: [Quota; 3] = [
    Quota::Subscriptions,
    Quota::Connections,
    Quota::RequestsInFlight,
];

fn lamp() -> PluginName {
    PluginName::parse("lamp").expect("good")
}

fn all(limit: u64) -> Quotas {
    let mut quotas = Quotas::UNLIMITED;
    for quota in Quota::ALL {
        quotas.set(quota, limit);
    }
    quotas
}

/// One plugin that is like everybody.
fn metering(everybody: Quotas) -> (Metering, Arc<Meter>) {
    let metering = Metering::new(everybody, Audit::none());
    let shares = [(lamp(), Share::OfEverybody(OwnQuotas::default()))];
    metering.share_out(shares.into());
    let meter = metering.of(&lamp());
    (metering, meter)
}

fn reading(meter: &Meter, quota: Quota) -> Reading {
    let readings = meter.read();
    *readings
        .iter()
        .find(|reading| reading.quota == quota)
        .expect("there")
}

#[tokio::test(start_paused = true)]
async fn each_quota_is_for_itself_and_says_which_it_is() {
    let (_, meter) = metering(all(2));
    for quota in RATES {
        assert_eq!(meter.charge(&[(quota, 2)]), Ok(()), "{quota:?}");
        let exceeded = meter.charge(&[(quota, 1)]).expect_err("used up");
        assert_eq!(exceeded.reason(), Reason::RateLimited, "{quota:?}");
        assert_eq!(exceeded.retry_after(), Some(Duration::from_millis(500)));
        let text = exceeded.to_string();
        let key = format!("plugins.lamp.quotas.{}", quota.key());
        assert!(text.contains(&key) && text.contains(" 2 "), "{text}");
        let expected = Reading {
            quota,
            limit: 2,
            used: 2,
            refused: 1,
        };
        assert_eq!(reading(&meter, quota), expected);
    }
    for (quota, reason) in HELD.into_iter().zip([
        Reason::TooManySubscriptions,
        Reason::TooManyConnections,
        Reason::CallerBusy,
    ]) {
        let held = (meter.hold(quota), meter.hold(quota));
        let exceeded = meter.hold(quota).expect_err("used up");
        assert_eq!(exceeded.reason(), reason, "{quota:?}");
        assert!(exceeded.to_string().contains("it has them already"));
        assert_eq!(
            (reading(&meter, quota).used, reading(&meter, quota).refused),
            (2, 1)
        );
        drop(held);
        assert!(meter.hold(quota).is_ok(), "{quota:?}");
    }
    tokio::time::advance(Duration::from_secs(1)).await;
    for quota in RATES {
        assert_eq!(reading(&meter, quota).used, 0);
        assert_eq!(meter.charge(&[(quota, 2)]), Ok(()), "{quota:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_costs_several_takes_all_or_nothing_and_is_told_the_longest_wait() {
    let mut quotas = Quotas::UNLIMITED;
    quotas.set(Quota::PublishesPerSecond, 10);
    quotas.set(Quota::PublishBytesPerSecond, 1_000);
    let (_, meter) = metering(quotas);
    let publish = |events, bytes| {
        let costs = [
            (Quota::PublishesPerSecond, events),
            (Quota::PublishBytesPerSecond, bytes),
        ];
        meter.charge(&costs)
    };
    assert_eq!(publish(4, 900), Ok(()));
    let exceeded = publish(5, 300).expect_err("too many bytes");
    assert_eq!(exceeded.quota, Quota::PublishBytesPerSecond);
    assert_eq!(exceeded.retry_after(), Some(Duration::from_millis(200)));
    assert_eq!(reading(&meter, Quota::PublishesPerSecond).used, 4);
    let exceeded = publish(8, 600).expect_err("too much of both");
    assert_eq!(exceeded.quota, Quota::PublishesPerSecond);
    assert_eq!(exceeded.retry_after(), Some(Duration::from_millis(500)));
    tokio::time::advance(Duration::from_millis(500)).await;
    assert_eq!(publish(8, 600), Ok(()));
}

#[test]
fn operators_and_plugins_of_the_program_itself_are_measured_by_no_limit() {
    let metering = Metering::new(all(1), Audit::none());
    let mut own = OwnQuotas::default();
    own.set(Quota::CallsPerSecond, 1);
    let named = |name| PluginName::parse(name).expect("good");
    let shares = [
        (named("built_in"), Share::OfItsOwn(OwnQuotas::default())),
        (named("bounded"), Share::OfItsOwn(own)),
    ];
    metering.share_out(shares.into());
    let (built_in, bounded) = (
        metering.of(&named("built_in")),
        metering.of(&named("bounded")),
    );
    for meter in [&built_in, metering.of_operators()] {
        for quota in RATES {
            assert_eq!(meter.charge(&[(quota, 1_000_000)]), Ok(()));
        }
        let held: Vec<_> = (0..10_000)
            .map(|_| meter.hold(Quota::RequestsInFlight))
            .collect();
        assert!(held.iter().all(Result::is_ok));
    }
    assert_eq!(bounded.charge(&[(Quota::CallsPerSecond, 1)]), Ok(()));
    assert!(bounded.charge(&[(Quota::CallsPerSecond, 1)]).is_err());
    assert!(bounded.charge(&[(Quota::StateWritesPerSecond, 9)]).is_ok());
    let strangers = metering.of(&named("unknown"));
    assert!(strangers.charge(&[(Quota::CallsPerSecond, 1)]).is_ok());
    assert!(strangers.charge(&[(Quota::CallsPerSecond, 1)]).is_err());
}

#[tokio::test(start_paused = true)]
async fn limits_change_for_callers_that_are_there_and_what_was_used_stays() {
    let (metering, meter) = metering(all(2));
    assert_eq!(meter.charge(&[(Quota::CallsPerSecond, 2)]), Ok(()));
    let held = (
        meter.hold(Quota::Connections),
        meter.hold(Quota::Connections),
    );
    metering.set_everybody(all(4));
    assert!(meter.hold(Quota::Connections).is_ok());
    // The whole of a second is owed, whatever its worth is.
    assert!(meter.charge(&[(Quota::CallsPerSecond, 1)]).is_err());
    tokio::time::advance(Duration::from_millis(500)).await;
    assert_eq!(meter.charge(&[(Quota::CallsPerSecond, 2)]), Ok(()));
    let mut own = OwnQuotas::default();
    own.set(Quota::CallsPerSecond, 0);
    metering.share_out([(lamp(), Share::OfEverybody(own))].into());
    assert!(
        Arc::ptr_eq(&meter, &metering.of(&lamp())),
        "it is the same one"
    );
    assert_eq!(meter.charge(&[(Quota::CallsPerSecond, 1_000)]), Ok(()));
    metering.set_everybody(all(1));
    assert_eq!(
        meter.charge(&[(Quota::CallsPerSecond, 1_000)]),
        Ok(()),
        "its own word counts"
    );
    assert!(meter.hold(Quota::Connections).is_err());
    drop(held);
    metering.share_out(HashMap::new());
    assert!(metering.read(None).is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_refusals_is_told_once_in_ten_seconds() {
    let account = Account::default();
    let meter = Meter::new(None, Audit::none(), Quotas::UNLIMITED);
    let told = |account: &Account, meter: &Meter| {
        let tries = (0..1_000).filter(|_| account.is_told_now(meter.now()));
        tries.count()
    };
    assert_eq!(told(&account, &meter), 1);
    tokio::time::advance(Duration::from_millis(9_999)).await;
    assert_eq!(told(&account, &meter), 0);
    tokio::time::advance(Duration::from_millis(1)).await;
    assert_eq!(told(&account, &meter), 1);
}
