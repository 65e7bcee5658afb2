//! What operators grant while the core runs: the phase that waits for it, what is kept, who is told.

use super::children::child;
use super::*;
use crate::config::{Need, Permission};
use crate::error::Classify as _;
use crate::security::{Action, Granting, Mode};
use crate::types::Source;

fn permission(text: &str) -> Permission {
    text.parse().expect(text)
}

fn permissions(texts: &[&str]) -> Vec<Permission> {
    texts.iter().map(|text| permission(text)).collect()
}

fn asking(mut manifest: Manifest, texts: &[&str]) -> Manifest {
    manifest.permissions = permissions(texts).iter().collect();
    manifest
}

fn says(instance: &str, texts: &[&str]) -> Hello {
    let said = permissions(texts).into_iter();
    Hello {
        permissions: said.map(|one| (one, Need::Required)).collect(),
        ..hello(instance)
    }
}

impl Home {
    fn reviewed(manifests: Vec<Manifest>, data: Arc<TempDir>) -> Self {
        let policy = Policy {
            granting: Granting::Reviewed,
            ..Policy::default()
        };
        Self::build_under(policy, Config::default(), manifests, HashMap::new(), data)
    }

    async fn grant(&self, plugin: &str, texts: &[&str]) -> Granted {
        let change = GrantChange::Give(permissions(texts), "uid 7".to_owned());
        let granted = self.manager.change_grants(plugin, change).await;
        granted.expect("granted")
    }

    async fn revoke(&self, plugin: &str, texts: &[&str]) -> Granted {
        let change = GrantChange::Take(permissions(texts));
        let revoked = self.manager.change_grants(plugin, change).await;
        revoked.expect("revoked")
    }

    fn may_publish(&self, plugin: &str, topic: &str) -> bool {
        let source = Source::Plugin(name(plugin));
        self.gatekeeper.may(&source, Action::Publish(topic))
    }
}

fn directory() -> Arc<TempDir> {
    Arc::new(tempfile::tempdir().expect("a directory"))
}

#[tokio::test]
async fn under_review_a_child_is_not_spawned_before_it_is_granted_what_it_asks_for() {
    let data = directory();
    let lamp = child("lamp", "exec sleep 60", data.path());
    let lamp = asking(lamp, &["publish=home.>", "call=geo.lookup"]);
    let home = Home::reviewed(vec![lamp], data);
    let waits = home.phase("lamp", Phase::WaitingGrant).await;
    assert_eq!((waits.reason, waits.generation.0), ("not_granted", 0));
    assert!(
        waits.message.contains("corectl plugins grant lamp"),
        "{}",
        waits.message
    );
    let refused = home
        .manager
        .start("lamp", soon())
        .await
        .expect_err("it waits");
    assert!(refused.to_string().contains("waiting_grant"), "{refused}");
    home.grant("lamp", &["publish=home.>"]).await;
    let waits = home
        .until("lamp", |info| !info.message.contains("publish"))
        .await;
    assert_eq!(waits.phase, Phase::WaitingGrant);
    home.grant("lamp", &["call=geo.*"]).await;
    home.until("lamp", |info| info.generation.0 == 1).await;
    home.close().await;
}

#[tokio::test(start_paused = true)]
async fn an_update_that_asks_for_more_goes_on_with_what_it_has() {
    let data = directory();
    let old = asking(remote("lamp", &[]), &["publish=home.>"]);
    let more = asking(old.clone(), &["publish=home.>", "publish=shed.>"]);
    let home = Home::reviewed(vec![old], Arc::clone(&data));
    home.phase("lamp", Phase::Connecting).await;
    home.grant("lamp", &["publish=home.>"]).await;
    let _lamp = home.obedient("lamp").await;
    home.phase("lamp", Phase::Ready).await;
    home.manager
        .reload(vec![more.clone()])
        .await
        .expect("reloaded");
    assert_eq!(home.pair("lamp"), (PluginState::Started, Phase::Ready));
    assert!(home.may_publish("lamp", "home.x") && !home.may_publish("lamp", "shed.x"));
    let shown = home
        .manager
        .change_grants("lamp", GrantChange::None)
        .await
        .expect("known");
    let missing: Vec<_> = shown
        .standings
        .iter()
        .filter(|one| one.is_missing())
        .collect();
    assert_eq!(missing.len(), 1);
    assert_eq!(missing[0].permission, permission("publish=shed.>"));
    home.close().await;
    // Nor does it wait with the next core.
    let home = Home::reviewed(vec![more], data);
    home.phase("lamp", Phase::Connecting).await;
    let _lamp = home.obedient("lamp").await;
    home.phase("lamp", Phase::Ready).await;
    home.close().await;
}

#[tokio::test(start_paused = true)]
async fn what_a_remote_plugin_asks_for_in_its_hello_is_granted_by_operators_only() {
    let home = Home::new(vec![remote("lamp", &[])]);
    home.phase("lamp", Phase::Connecting).await;
    let link = home
        .open("lamp", says("i", &["publish=home.>", "publish=lamp.x"]))
        .await;
    let lamp = Obedient::new(&home.scope, link.expect("admitted"), |_| Ok(()));
    home.phase("lamp", Phase::WaitingGrant).await;
    assert!(!home.may_publish("lamp", "home.x") && home.may_publish("lamp", "lamp.x"));
    let granted = home.grant("lamp", &["publish=home.>"]).await;
    assert_eq!(granted.changed, permissions(&["publish=home.>"]));
    home.phase("lamp", Phase::Ready).await;
    assert!(home.may_publish("lamp", "home.x"));
    assert_eq!(
        lamp.got(),
        ["granted publish=home.>", "on_load", "on_start"]
    );
    let again = home.grant("lamp", &["publish=home.>"]).await;
    assert!(
        again.changed.is_empty() && lamp.got().is_empty(),
        "it is no news"
    );
    home.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_revoked_grant_ends_no_run_and_holds_up_the_next() {
    let data = directory();
    let manifests = || vec![remote("lamp", &[])];
    let home = Home::build(manifests(), HashMap::new(), Arc::clone(&data));
    home.phase("lamp", Phase::Connecting).await;
    home.grant("lamp", &["publish=home.>", "publish=shed.>"])
        .await;
    let link = home.open("lamp", says("i", &["publish=home.>"])).await;
    let lamp = Obedient::new(&home.scope, link.expect("admitted"), |_| Ok(()));
    home.phase("lamp", Phase::Ready).await;
    let revoked = home.revoke("lamp", &[]).await;
    assert_eq!(
        revoked.changed,
        permissions(&["publish=home.>", "publish=shed.>"])
    );
    assert_eq!(home.pair("lamp"), (PluginState::Started, Phase::Ready));
    assert!(!home.may_publish("lamp", "home.x"));
    assert_eq!(lamp.got(), ["on_load", "on_start", "granted "]);
    assert!(home.revoke("lamp", &[]).await.changed.is_empty());
    home.close().await;
    let home = Home::build(manifests(), HashMap::new(), data);
    home.phase("lamp", Phase::Connecting).await;
    let link = home.open("lamp", says("i", &["publish=home.>"])).await;
    let _lamp = Obedient::new(&home.scope, link.expect("admitted"), |_| Ok(()));
    home.phase("lamp", Phase::WaitingGrant).await;
    home.close().await;
}

#[tokio::test(start_paused = true)]
async fn in_audit_mode_nobody_waits() {
    let policy = Policy {
        granting: Granting::Reviewed,
        mode: Mode::Audit,
        ..Policy::default()
    };
    let lamp = asking(remote("lamp", &[]), &["publish=home.>"]);
    let home = Home::build_under(
        policy,
        Config::default(),
        vec![lamp],
        HashMap::new(),
        directory(),
    );
    home.phase("lamp", Phase::Connecting).await;
    let _lamp = home.obedient("lamp").await;
    home.phase("lamp", Phase::Ready).await;
    home.close().await;
}

#[tokio::test(start_paused = true)]
async fn of_a_plugin_that_is_let_go_of_no_grant_is_left_for_a_stranger_of_its_name() {
    let home = Home::new(Vec::new());
    let shed = || vec![remote("shed", &[])];
    home.manager.know(shed(), Vec::new()).await.expect("known");
    home.grant("shed", &["publish=home.>"]).await;
    home.manager
        .know(Vec::new(), vec![name("shed")])
        .await
        .expect("gone");
    let gone = home.manager.change_grants("shed", GrantChange::None).await;
    assert_eq!(gone.expect_err("gone").reason().as_str(), "NO_SUCH_PLUGIN");
    home.manager.know(shed(), Vec::new()).await.expect("known");
    let shown = home
        .manager
        .change_grants("shed", GrantChange::None)
        .await
        .expect("known");
    assert_eq!(shown.standings, []);
    assert!(!home.may_publish("shed", "home.x"));
    home.close().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_granted_is_on_the_disk_when_it_is_answered_and_what_cannot_be_is_said() {
    let data = directory();
    let home = Home::build(vec![remote("lamp", &[])], HashMap::new(), Arc::clone(&data));
    home.grant("lamp", &["publish=home.>"]).await;
    let kept = read_grants(data.path()).expect("there");
    assert_eq!(kept.of(&name("lamp")).len(), 1);
    std::fs::remove_dir_all(data.path().join("security")).expect("removed");
    std::fs::write(data.path().join("security"), "in the way").expect("written");
    let change = GrantChange::Give(permissions(&["publish=shed.>"]), String::new());
    let error = home
        .manager
        .change_grants("lamp", change)
        .await
        .expect_err("in the way");
    assert_eq!(error.reason().as_str(), "NOT_KEPT");
    assert!(
        home.may_publish("lamp", "shed.x"),
        "it holds until the core ends"
    );
    home.close().await;
}
