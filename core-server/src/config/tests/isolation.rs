use crate::plugin_manager::Manifest;
use crate::supervisor::isolation::{Resource, ResourceLimits, Sandbox};

use super::Home;

fn only(home: &Home) -> Manifest {
    let mut plugins = home.config().plugins;
    assert_eq!(plugins.len(), 1, "{plugins:?}");
    plugins.remove(0)
}

#[test]
fn limits_and_sandbox_are_typed_and_the_operator_has_the_last_word() {
    let manifest = r#"
        name = "lamp"
        run.command = "sh"
        [limits]
        memory = "64MiB"
        pids = 20
        required = ["memory"]
        [sandbox]
        user = "lamp"
        read = ["assets"]
        write = ["/var/lamp"]
        "#;
    let home = Home::with_core("[plugins.lamp.limits]\nmemory = \"32MiB\"\nopen_files = 99\n")
        .file("plugins/lamp/plugin.toml", manifest);
    let lamp = only(&home);
    let limits = ResourceLimits {
        memory: Some(32 << 20),
        pids: Some(20),
        cpu_weight: None,
        open_files: Some(99),
        required: vec![Resource::Memory],
    };
    assert_eq!(lamp.limits, limits);
    let sandbox = Sandbox {
        user: Some("lamp".to_owned()),
        group: None,
        landlock: true,
        read: vec![home.path("plugins/lamp/assets")],
        write: vec!["/var/lamp".into()],
        required: false,
    };
    assert_eq!(lamp.sandbox, sandbox);
}

#[test]
fn nothing_is_limited_unless_it_is_asked_for() {
    let home = Home::with_core("[plugins.lamp]\nrun.command = \"sh\"\n");
    let lamp = only(&home);
    assert_eq!(lamp.limits, ResourceLimits::default());
    assert_eq!(lamp.sandbox, Sandbox::default());
}

#[test]
fn a_remote_plugin_cannot_be_kept_to_anything() {
    let home = Home::with_core(
        "[plugins.lamp]\nrun.kind = \"remote\"\ntoken_env = \"LAMP\"\nlimits.pids = 3\n\
         sandbox.landlock = true\n",
    )
    .variable("LAMP", "0123456789abcdef0123456789abcdef");
    assert_eq!(
        home.mistakes(),
        [
            "core.toml:4:8: limits: a remote plugin is not started by this core; remove it",
            "core.toml:5:9: sandbox: a remote plugin is not started by this core; remove it",
        ]
    );
}
