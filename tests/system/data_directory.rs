//! What the core keeps in its data directory, and that it is one core's alone.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use core_proto::v1;
use core_tests::{CoreProcess, eventually, patience, within};
use rustix::process::Signal;
use tonic::Code;

use super::{CORE, ECHO};

fn manifest(name: &str, more: &str) -> String {
    format!("name = \"{name}\"\nrun.command = {ECHO:?}\n{more}")
}

async fn stop(core: &mut CoreProcess) {
    core.signal(Signal::TERM);
    let status = core.wait(patience()).await;
    assert_eq!(status.code(), Some(0), "{}", core.log());
}

#[tokio::test]
async fn a_second_core_on_one_data_directory_is_refused_wherever_its_database_is() {
    let mut first = CoreProcess::new(CORE, "");
    drop(first.start().await);
    let data = first.directory().join("data");
    let elsewhere = format!(
        "data_dir = {data:?}\nstorage.path = \"other.db\"\nlisten.runtime_dir = \"other-run\"\n"
    );
    let mut second = CoreProcess::new(CORE, &elsewhere);
    second.spawn();
    let status = second.wait(patience()).await;
    assert_eq!(status.code(), Some(70), "{}", second.log());
    let said = second.log();
    let holder = format!("process {}", first.pid());
    for part in [&*data.display().to_string(), &holder, "data_dir of its own"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    stop(&mut first).await;
    second.spawn();
    eventually!(second.log().contains("\"serving\""), "{}", second.log());
    stop(&mut second).await;
}

#[tokio::test]
async fn what_cannot_be_written_down_is_told_to_whoever_asked() {
    let mut core = CoreProcess::new(CORE, "").plugin("echo", &manifest("echo", ""));
    let operator = core.start().await;
    operator.until_phase("echo", "ready").await;
    // A directory in its place: as root too, nothing can be put there.
    let file = core.directory().join("data/desired.json");
    std::fs::create_dir(&file).expect("made");
    std::fs::write(file.join("full"), "").expect("written");
    let refused = within("stopped", operator.stop("echo"))
        .await
        .expect_err("it is not kept");
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert!(
        refused.message().contains("could not be written down"),
        "{refused}"
    );
    assert_eq!(
        operator.plugin("echo").await.state(),
        v1::PluginState::Stopped
    );
    std::fs::remove_dir_all(&file).expect("removed");
    operator.start("echo").await.expect("kept again");
    operator.stop("echo").await.expect("kept again");
    stop(&mut core).await;
    let operator = core.start().await;
    let echo = operator.until_phase("echo", "idle").await;
    assert_eq!(echo.desired(), v1::PluginState::Stopped, "over a restart");
    stop(&mut core).await;
}

#[tokio::test]
async fn a_bad_configuration_by_sighup_changes_nothing_and_says_why() {
    let mut core = CoreProcess::new(CORE, "").plugin("echo", &manifest("echo", ""));
    let operator = core.start().await;
    let before = operator.until_phase("echo", "ready").await;
    let path = core.directory().join("plugins/echo/plugin.toml");
    std::fs::write(&path, manifest("echo", "requires = 5\nnonsense = true\n")).expect("written");
    core.signal(Signal::HUP);
    eventually!(core.log().contains("nonsense"), "{}", core.log());
    let log = core.log();
    assert!(
        log.contains("requires"),
        "all that is wrong is listed: {log}"
    );
    let after = operator.plugin("echo").await;
    assert_eq!(
        (after.generation, after.pid),
        (before.generation, before.pid)
    );
    assert_eq!(after.phase, "ready");
    // The good one that follows counts.
    std::fs::write(&path, manifest("echo", "description = \"new\"\n")).expect("written");
    core.signal(Signal::HUP);
    operator
        .until("echo", "the new description", |plugin| {
            plugin.description == "new"
        })
        .await;
    stop(&mut core).await;
}

#[tokio::test]
async fn an_upgrade_survives_a_restart_of_the_core() {
    let mut core = CoreProcess::new(CORE, "").plugin("echo", &manifest("echo", ""));
    let operator = core.start().await;
    operator.until_phase("echo", "ready").await;
    let program = core.directory().join("echo-2");
    copy_program(Path::new(ECHO), &program);
    let mut client = operator.plugin_manager();
    let request = v1::PluginManagerUpgradeRequest {
        name: "echo".to_owned(),
        path: program.display().to_string(),
    };
    within("upgraded", client.upgrade(request))
        .await
        .expect("good");
    let runs = |pid: u32| {
        let exe = std::fs::read_link(format!("/proc/{pid}/exe"));
        exe.is_ok_and(|exe| exe == program)
    };
    let pid = operator.until_phase("echo", "ready").await.pid;
    assert!(runs(pid));
    stop(&mut core).await;
    let operator = core.start().await;
    let pid = operator.until_phase("echo", "ready").await.pid;
    assert!(runs(pid), "the configured program runs again");
    stop(&mut core).await;
}

fn copy_program(from: &Path, to: &Path) {
    std::fs::copy(from, to).expect("copied");
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(to, mode).expect("ours");
}
