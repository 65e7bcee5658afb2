//! `corectl dev`: a plugin that its author starts by hand.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use core_proto::v1;
use core_tests::{
    Client, Declared, TestCore, eventually, finished, is_alive, program, signal, within,
};
use rustix::process::Signal;
use serde_json::json;
use tokio::process::Child;

use super::{CORECTL, ECHO};

/// A session with the echo plugin; its output lies in `dev.log`.
fn dev(core: &TestCore, arguments: &[&str], command: &[&str]) -> Child {
    let directory = core.directory();
    let log = fs::File::create(directory.join("dev.log")).expect("a log");
    let socket = core.runtime().operator_socket().display().to_string();
    let address = format!("unix:{socket}");
    let before = ["--addr", &address, "dev", "lamp"];
    let arguments = [&before, arguments, &["--"], command].concat();
    program(CORECTL, &arguments, directory)
        .stdout(log.try_clone().expect("a second handle"))
        .stderr(log)
        .stdin(Stdio::null())
        .spawn()
        .expect("starts")
}

fn said(core: &TestCore) -> String {
    fs::read_to_string(core.directory().join("dev.log")).expect("there")
}

async fn credentials(core: &TestCore) -> Vec<v1::CredentialInfo> {
    let request = v1::AccessListCredentialsRequest::default();
    let listed = core.operator().access().list_credentials(request).await;
    listed.expect("listed").into_inner().credentials
}

async fn pid(operator: &Client) -> u32 {
    let pid = operator
        .call("lamp.pid", json!({}))
        .await
        .expect("answered");
    u32::try_from(pid.as_u64().expect("a number")).expect("a process id")
}

async fn interrupt(session: &mut Child) -> Option<i32> {
    signal(session.id().expect("it runs"), Signal::INT);
    let ended = within("the session ends", session.wait()).await;
    ended.expect("its own child").code()
}

#[tokio::test]
async fn a_plugin_is_started_anew_when_its_files_change_and_gone_in_the_end() {
    // A crash says no goodbye: its run is over once its channel has not come back for so long.
    let lamp = Declared::remote("lamp").suspend(Duration::from_millis(300));
    let core = TestCore::builder().plugin(lamp).start().await;
    let operator = core.operator();
    let sources = core.directory().join("sources");
    fs::create_dir(&sources).expect("made");
    fs::write(sources.join("lamp.rs"), "one").expect("written");
    let mut session = dev(&core, &["--watch", "sources"], &[ECHO]);
    operator.until_phase("lamp", "ready").await;
    let first = pid(operator).await;
    let made = credentials(&core).await;
    assert_eq!(made.len(), 1, "{made:?}");
    assert_eq!((&*made[0].plugin, &*made[0].label), ("lamp", "corectl dev"));
    assert!(made[0].expires_at.is_some(), "of limited life");

    fs::write(sources.join("lamp.rs"), "another").expect("written");
    operator
        .until("lamp", "a second run", |plugin| {
            plugin.generation == 2 && plugin.phase == "ready"
        })
        .await;
    let second = pid(operator).await;
    assert_ne!(first, second);
    assert!(!is_alive(first));
    // A token for each start, and the one before is gone.
    eventually!(credentials(&core).await.len() == 1);
    let again = credentials(&core).await;
    assert_ne!(again[0].id, made[0].id);

    // Crashes: started again without any change.
    signal(second, Signal::KILL);
    operator
        .until("lamp", "a third run", |plugin| {
            plugin.generation == 3 && plugin.phase == "ready"
        })
        .await;
    let third = pid(operator).await;
    assert!(said(&core).contains("signal 9"), "{}", said(&core));

    // Nothing of its token where others can read it.
    let arguments = fs::read(format!("/proc/{third}/cmdline")).expect("it runs");
    let environment = fs::read(format!("/proc/{third}/environ")).expect("ours");
    let environment = String::from_utf8_lossy(&environment);
    let token = environment
        .split('\0')
        .find_map(|one| one.strip_prefix("CORE_TOKEN="));
    let token = token.expect("it has one");
    assert!(!String::from_utf8_lossy(&arguments).contains(token));
    assert!(!said(&core).contains(token));

    assert_eq!(interrupt(&mut session).await, Some(130));
    assert!(!is_alive(third), "it was ended before the session");
    assert_eq!(credentials(&core).await, [], "the token is revoked");
    // The plugin's own lines are the session's.
    assert!(said(&core).contains("lamp"), "{}", said(&core));
    core.shutdown().await;
}

#[tokio::test]
async fn a_command_that_ends_well_waits_for_a_change_and_one_that_hangs_is_killed() {
    let core = TestCore::start().await;
    let source = core.directory().join("source");
    fs::write(&source, "one").expect("written");
    let mut session = dev(&core, &["--watch", "source"], &["true"]);
    eventually!(
        said(&core).contains("when a file changes"),
        "{}",
        said(&core)
    );
    fs::write(&source, "two words").expect("written");
    let ends = || said(&core).matches("when a file changes").count();
    eventually!(ends() == 2, "{}", said(&core));
    assert_eq!(interrupt(&mut session).await, Some(130));
    assert_eq!(credentials(&core).await, []);
    let request = v1::PluginManagerListRequest::default();
    let listed = core.operator().plugin_manager().list(request).await;
    let listed = listed.expect("listed").into_inner().plugins;
    assert_eq!(listed, [], "what has no credential is not known");

    // What ignores SIGTERM goes with the second Ctrl-C, and so does what it has started.
    let script = "trap '' TERM; echo $$ > hanging.pid; sleep 600 & wait; wait";
    let mut session = dev(&core, &["--watch", "source"], &["sh", "-c", script]);
    let file = core.directory().join("hanging.pid");
    let read = || fs::read_to_string(&file).unwrap_or_default();
    eventually!(read().ends_with('\n'));
    let hanging: u32 = read().trim().parse().expect("a process id");
    let session_id = session.id().expect("it runs");
    signal(session_id, Signal::INT);
    eventually!({
        signal(session_id, Signal::INT);
        matches!(session.try_wait(), Ok(Some(_)))
    });
    assert!(!is_alive(hanging));
    assert_eq!(credentials(&core).await, []);
    core.shutdown().await;
}

#[tokio::test]
async fn what_cannot_be_run_is_told_at_once_and_leaves_no_token() {
    let core = TestCore::builder()
        .plugin(Declared::process("child", ECHO))
        .start()
        .await;
    let socket = core.runtime().operator_socket().display().to_string();
    let address = format!("unix:{socket}");
    let run = async |name: &str, command: &str| {
        let arguments = ["--addr", &address, "dev", name, "--", command];
        finished(CORECTL, &arguments, core.directory()).await
    };
    let missing = run("lamp", "no-such-program").await;
    assert_eq!(missing.code, Some(2), "{missing:?}");
    assert!(missing.stderr.contains("no-such-program"), "{missing:?}");
    assert_eq!(credentials(&core).await, []);
    // The core starts that one itself.
    let child = run("child", ECHO).await;
    assert_eq!(child.code, Some(2), "{child:?}");
    assert!(
        child.stderr.contains("the core runs \"child\" itself"),
        "{child:?}"
    );
    core.shutdown().await;
}

#[tokio::test]
async fn what_writes_its_own_sources_is_ended_with_advice_and_waits_for_its_author() {
    let core = TestCore::start().await;
    let sources = core.directory().join("sources");
    fs::create_dir(&sources).expect("made");
    let source = sources.join("lamp.py");
    fs::write(&source, "one").expect("written");
    let script = "echo begun >> starts; echo again >> sources/notes; exec sleep 600";
    let mut session = dev(&core, &["--watch", "sources"], &["sh", "-c", script]);
    let starts = || {
        let log = fs::read_to_string(core.directory().join("starts"));
        log.unwrap_or_default().lines().count()
    };
    let advice = || said(&core).matches("Name its sources with --watch").count();
    eventually!(advice() == 1, "{}", said(&core));
    assert_eq!(starts(), 5, "{}", said(&core));
    assert!(said(&core).contains("notes changed"), "{}", said(&core));
    // Its author's change starts it; its own next one ends it again.
    fs::write(&source, "another").expect("written");
    eventually!(advice() == 2, "{}", said(&core));
    assert_eq!(starts(), 6, "{}", said(&core));
    assert_eq!(interrupt(&mut session).await, Some(130));
    core.shutdown().await;
}
