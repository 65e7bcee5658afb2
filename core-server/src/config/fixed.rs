//! What cannot change while the core runs.

use super::{Config, Supervision};

/// Settings that differ between the configuration in force and another one, and take effect only when
/// the core starts: dotted keys, in the order of the documentation. Plugins are compared elsewhere.
#[must_use]
pub fn needs_restart(in_force: &Config, other: &Config) -> Vec<String> {
    let mut keys = Vec::new();
    let mut compare = |key: &str, same: bool| {
        if !same {
            keys.push(key.to_owned());
        }
    };
    // Taken apart, so that a new setting is not forgotten here. Where plugins are looked for is looked
    // up with each reload, and quotas change with it; which file it was says nothing of what is in it.
    let Config {
        file: _,
        plugins_dir: _,
        data_dir,
        shutdown_timeout,
        threads,
        storage,
        listen,
        operators,
        security,
        log,
        supervision,
        limits,
        quotas: _,
        plugins: _,
    } = in_force;
    compare("data_dir", *data_dir == other.data_dir);
    compare(
        "shutdown_timeout",
        *shutdown_timeout == other.shutdown_timeout,
    );
    compare("threads", *threads == other.threads);
    compare("operators", *operators == other.operators);
    compare("storage.adapter", storage.adapter == other.storage.adapter);
    compare("storage.path", storage.path == other.storage.path);
    compare(
        "storage.durability",
        storage.durability == other.storage.durability,
    );
    compare(
        "listen.runtime_dir",
        listen.runtime_dir == other.listen.runtime_dir,
    );
    compare("listen.tcp", listen.tcp == other.listen.tcp);
    compare("listen.tls", listen.tls == other.listen.tls);
    compare(
        "listen.tls_names",
        listen.tls_names == other.listen.tls_names,
    );
    compare(
        "listen.tls_certificate",
        listen.tls_certificate == other.listen.tls_certificate,
    );
    compare("listen.tls_key", listen.tls_key == other.listen.tls_key);
    compare(
        "listen.insecure_plaintext",
        listen.insecure_plaintext == other.listen.insecure_plaintext,
    );
    compare(
        "security.policy",
        security.granting == other.security.granting,
    );
    compare("security.mode", security.mode == other.security.mode);
    compare(
        "security.certificate_life",
        security.certificate_life == other.security.certificate_life,
    );
    compare("log.filter", log.filter == other.log.filter);
    compare("log.format", log.format == other.log.format);
    let Supervision {
        parent_death_signal,
        guardian,
        subreaper,
        boot_sweep,
    } = *supervision;
    let layers = &other.supervision;
    compare(
        "supervision.parent_death_signal",
        parent_death_signal == layers.parent_death_signal,
    );
    compare("supervision.guardian", guardian == layers.guardian);
    compare("supervision.subreaper", subreaper == layers.subreaper);
    compare("supervision.boot_sweep", boot_sweep == layers.boot_sweep);
    for (limit, other) in limits.describe().iter().zip(other.limits.describe()) {
        compare(
            &format!("limits.{}", limit.name),
            limit.value == other.value,
        );
    }
    keys
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use super::super::{Adapter, Quotas};
    use super::*;

    #[test]
    fn what_differs_is_named_by_its_key_and_nothing_else_is() {
        let old = Config::for_tests(Path::new("/here"));
        assert!(needs_restart(&old, &old).is_empty());
        let mut new = old.clone();
        new.plugins_dir = "/there".into();
        new.quotas = Quotas::UNLIMITED;
        assert!(needs_restart(&old, &new).is_empty(), "it changes live");
        new.listen.tcp.push(([127, 0, 0, 1], 1).into());
        new.storage.adapter = Adapter::Sqlite;
        new.limits.call_depth += 1;
        new.limits.call_timeout += Duration::from_secs(1);
        let keys = [
            "storage.adapter",
            "listen.tcp",
            "limits.call_depth",
            "limits.call_timeout",
        ];
        assert_eq!(needs_restart(&old, &new), keys);
    }
}
