//! `core-server init`: everything that a core needs before its first start, made once. What is there is
//! left alone, so that it may be run each time, as compose does.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use crate::RuntimeError;
use crate::config::Config;
use crate::files::{DirectoryLock, Outlives, write_atomically};
use crate::plugin_manager::Kind;
use crate::runtime::make_certificates;
use crate::security::access::{self, Access};
use crate::security::authority::Made;
use crate::security::{Credentials, Token};
use crate::types::PluginName;

/// Why nothing more was made. What was made before stands.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory cannot be made.
    #[error("cannot make {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What is kept of credentials is no good.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A core runs: tokens are made by asking it.
    #[error("{} is in use; with a core that runs, make tokens with `corectl tokens create`", path.display())]
    InUse {
        /// The data directory.
        path: PathBuf,
        /// Who.
        source: io::Error,
    },
    /// Certificates cannot be made.
    #[error("certificates cannot be made")]
    Certificates(#[source] Box<RuntimeError>),
    /// A token cannot be made.
    #[error("a token cannot be made")]
    Token(#[from] access::Error),
}

/// One thing that a core needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// What it is: "configuration", "directory", "ca", "certificate", "operator_token", "plugin_token",
    /// "plugin_ca".
    pub what: &'static str,
    /// Where it is.
    pub path: PathBuf,
    /// Made now, or there before.
    pub made: Made,
    /// What is wrong with one that was there, and what to do.
    pub warning: Option<String>,
}

/// Writes a commented configuration where there is none. `names`: by which other machines reach this one.
///
/// # Errors
/// [`Error::File`].
pub fn configuration(path: &Path, names: &[String]) -> Result<Item, Error> {
    let made = if path.exists() {
        Made::Before
    } else {
        let listed: Vec<_> = names.iter().map(|name| format!("{name:?}")).collect();
        let names = if names.is_empty() {
            "# tls_names = [\"core.lan\", \"192.168.1.10\"]".to_owned()
        } else {
            format!("tls_names = [{}]", listed.join(", "))
        };
        let text = CONFIGURATION.replace("NAMES", &names);
        write_atomically(path, text.as_bytes(), Outlives::Power).map_err(|source| Error::File {
            path: path.to_owned(),
            source,
        })?;
        Made::Now
    };
    Ok(Item {
        what: "configuration",
        path: path.to_owned(),
        made,
        warning: None,
    })
}

/// What `init` writes; every line of it can be left out.
const CONFIGURATION: &str = "\
# The configuration of this core. All settings, with their defaults: core-server check-config;
# what they mean: docs/reference/configuration.md.

[listen]
# Plugins and operators on other machines; TLS is spoken here. Take it out if there are none.
tls = [\"0.0.0.0:7443\"]
# Names and addresses by which they reach this machine. Without it, as the core finds them.
NAMES
";

/// Where the tokens of plugins go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tokens<'a> {
    /// To the core's own secrets: `data/security/NAME.token`.
    Kept,
    /// To this directory: `NAME/token`, and `NAME/ca.pem`, whom that plugin is to trust. Each plugin can
    /// so be shown its own directory and no other, as containers are.
    HandedOut(&'a Path),
}

/// Makes the directories, the certificates, a token for operators and one for each of `plugins`, each in
/// a file that only this user can read. A token that is there and opens nothing is told in [`Item::warning`]: it
/// is nobody else's business to replace one, and no reason to keep the core from starting.
///
/// # Errors
/// [`Error`].
pub fn init(
    config: &Config,
    plugins: &[PluginName],
    tokens: Tokens<'_>,
) -> Result<Vec<Item>, Error> {
    let handed_out = |plugin: &PluginName| match tokens {
        Tokens::Kept => None,
        Tokens::HandedOut(directory) => Some(directory.join(plugin.as_str())),
    };
    let mut items = Vec::new();
    let directories = [config.plugins_dir.clone(), config.data_dir.clone()];
    for directory in directories
        .into_iter()
        .chain(plugins.iter().filter_map(handed_out))
    {
        items.push(make_directory(directory)?);
    }
    let security = config.data_dir.join("security");
    let certificates: &[_] = match config.listen.tls_certificate {
        Some(_) => &["ca.pem", "ca.key"],
        None => &["ca.pem", "ca.key", "server.pem", "server.key"],
    };
    // Two at once would each make half of a CA. A core that runs has made all of it.
    let lock = if certificates.iter().all(|name| security.join(name).exists()) {
        None
    } else {
        Some(lock(config)?)
    };
    let made = make_certificates(config).map_err(|error| Error::Certificates(Box::new(error)))?;
    let files = [("ca", "ca.pem"), ("certificate", "server.pem")];
    for ((what, name), made) in files.into_iter().zip(made) {
        items.push(Item {
            what,
            path: security.join(name),
            made,
            warning: None,
        });
    }
    let operator = (None, "operator_token", security.join("operator.token"));
    let of_plugin = |plugin: &PluginName| {
        let path = match handed_out(plugin) {
            Some(directory) => directory.join("token"),
            None => security.join(format!("{plugin}.token")),
        };
        (Some(plugin.clone()), "plugin_token", path)
    };
    let wanted: Vec<_> = std::iter::once(operator)
        .chain(plugins.iter().map(of_plugin))
        .collect();
    let access = if wanted.iter().all(|(_, _, path)| path.exists()) {
        None
    } else {
        Some(open(config, &security, lock)?)
    };
    let known = match &access {
        Some((access, _)) => access.clone(),
        // Written as a whole each time, so it may be read while a core has it.
        None => read_credentials(&security)?,
    };
    for (plugin, what, path) in wanted {
        let mut warning = None;
        let made = match &access {
            Some((access, _)) if !path.exists() => {
                let (record, token) = access.create_token(plugin.as_ref(), "init", None)?;
                let text = format!("{}\n", token.reveal());
                let written = write_atomically(&path, text.as_bytes(), Outlives::Power);
                if let Err(source) = written {
                    // Nobody has seen it, and nobody ever will.
                    access.revoke(&access::Which::Ids(vec![record.id]))?;
                    return Err(Error::File { path, source });
                }
                Made::Now
            }
            _ => {
                warning = doubt(config, &known, plugin.as_ref(), &path);
                Made::Before
            }
        };
        items.push(Item {
            what,
            path,
            made,
            warning,
        });
    }
    for directory in plugins.iter().filter_map(handed_out) {
        items.push(hand_out_ca(
            &security.join("ca.pem"),
            directory.join("ca.pem"),
        )?);
    }
    Ok(items)
}

/// Why what is in the place of a token lets nobody in, and what to do.
fn doubt(
    config: &Config,
    known: &Access,
    plugin: Option<&PluginName>,
    path: &Path,
) -> Option<String> {
    let whose = plugin.map_or_else(
        || "an operator".to_owned(),
        |name| format!("plugin \"{name}\""),
    );
    let why = match fs::read_to_string(path) {
        Err(error) => format!("cannot be read ({error})"),
        Ok(text) => match Token::from_text(&text) {
            None => "holds no token".to_owned(),
            Some(token) if known.is_token_of(plugin, &token) => return None,
            Some(token) if plugin.is_some_and(|name| is_configured(config, name, &token)) => {
                return None;
            }
            Some(_) => format!(
                "holds no token that this core knows as one of {whose}: it was revoked, has expired, or is another \
                 home's"
            ),
        },
    };
    Some(format!(
        "{} {why}; to have another made, remove it and run init again",
        path.display()
    ))
}

/// Whether the configuration itself gives a plugin this token.
fn is_configured(config: &Config, name: &PluginName, token: &Token) -> bool {
    let mut manifests = config.plugins.iter();
    manifests.any(|one| {
        one.name == *name
            && matches!(&one.kind, Kind::Remote { token: Some(given) } if given == token)
    })
}

fn make_directory(path: PathBuf) -> Result<Item, Error> {
    let made = if path.is_dir() {
        Made::Before
    } else {
        Made::Now
    };
    let mut builder = DirBuilder::new();
    let built = builder.recursive(true).mode(0o700).create(&path);
    match built {
        Ok(()) => Ok(Item {
            what: "directory",
            path,
            made,
            warning: None,
        }),
        Err(source) => Err(Error::File { path, source }),
    }
}

/// Copies the CA's certificate where a plugin sees it. One that is there may be of an earlier CA.
fn hand_out_ca(ca: &Path, path: PathBuf) -> Result<Item, Error> {
    let failed = |path: &Path, source| Error::File {
        path: path.to_owned(),
        source,
    };
    let current = fs::read(ca).map_err(|source| failed(ca, source))?;
    let made = if fs::read(&path).is_ok_and(|there| there == current) {
        Made::Before
    } else {
        write_atomically(&path, &current, Outlives::Power)
            .map_err(|source| failed(&path, source))?;
        Made::Now
    };
    Ok(Item {
        what: "plugin_ca",
        path,
        made,
        warning: None,
    })
}

fn lock(config: &Config) -> Result<DirectoryLock, Error> {
    DirectoryLock::take(&config.data_dir).map_err(|source| Error::InUse {
        path: config.data_dir.clone(),
        source,
    })
}

/// The credentials that are kept, while no core runs on them.
fn open(
    config: &Config,
    security: &Path,
    held: Option<DirectoryLock>,
) -> Result<(Access, DirectoryLock), Error> {
    let lock = held.map_or_else(|| lock(config), Ok)?;
    fs::create_dir_all(security).map_err(|source| Error::File {
        path: security.to_owned(),
        source,
    })?;
    Ok((read_credentials(security)?, lock))
}

fn read_credentials(security: &Path) -> Result<Access, Error> {
    let access = Access::open(security, Credentials::default(), None);
    access.map_err(|source| Error::Unreadable {
        path: security.join("credentials.json"),
        source,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn everything_is_made_once_and_is_this_users_alone() {
        let home = tempfile::tempdir().expect("a directory");
        let config = Config::for_tests(home.path());
        let plugins = [PluginName::parse("shed").expect("good name")];
        let first = init(&config, &plugins, Tokens::Kept).expect("made");
        assert!(first.iter().all(|item| item.made == Made::Now), "{first:?}");
        let token = home.path().join("data/security/shed.token");
        let before = fs::read_to_string(&token).expect("there");
        for item in &first {
            let mode = fs::metadata(&item.path)
                .expect("there")
                .permissions()
                .mode();
            assert_eq!(mode & 0o077, 0, "{item:?}");
        }
        let again = init(&config, &plugins, Tokens::Kept).expect("there");
        assert!(
            again.iter().all(|item| item.made == Made::Before),
            "{again:?}"
        );
        assert_eq!(fs::read_to_string(&token).expect("there"), before);
    }

    #[test]
    fn a_plugin_is_handed_its_token_and_the_ca_in_a_directory_of_its_own() {
        let home = tempfile::tempdir().expect("a directory");
        let config = Config::for_tests(home.path());
        let plugins = ["shed", "attic"].map(|name| PluginName::parse(name).expect("good name"));
        let out = home.path().join("out");
        let made = init(&config, &plugins, Tokens::HandedOut(&out)).expect("made");
        assert!(made.iter().all(|item| item.made == Made::Now), "{made:?}");
        let read = |path: &str| fs::read_to_string(home.path().join(path)).expect("there");
        let (shed, attic) = (read("out/shed/token"), read("out/attic/token"));
        assert_ne!(shed, attic);
        assert!(!home.path().join("data/security/shed.token").exists());
        assert_eq!(read("out/shed/ca.pem"), read("data/security/ca.pem"));

        // An earlier CA's gives way; the token stays.
        fs::write(out.join("shed/ca.pem"), "another").expect("written");
        let again = init(&config, &plugins, Tokens::HandedOut(&out)).expect("there");
        let renewed: Vec<_> = again
            .iter()
            .filter(|item| item.made == Made::Now)
            .map(|item| item.path.clone())
            .collect();
        assert_eq!(renewed, [out.join("shed/ca.pem")]);
        assert_eq!(read("out/shed/ca.pem"), read("data/security/ca.pem"));
        assert_eq!(read("out/shed/token"), shed);
    }

    #[test]
    fn a_token_that_is_there_and_opens_nothing_is_told_with_what_to_do() {
        let home = tempfile::tempdir().expect("a directory");
        let mut config = Config::for_tests(home.path());
        let plugins = ["shed", "attic"].map(|name| PluginName::parse(name).expect("good name"));
        init(&config, &plugins, Tokens::Kept).expect("made");
        let security = config.data_dir.join("security");
        let path = |name: &str| security.join(format!("{name}.token"));
        let doubts = |config: &Config| {
            let items = init(config, &plugins, Tokens::Kept).expect("there");
            let told = items.into_iter().filter_map(|item| item.warning);
            told.collect::<Vec<_>>()
        };
        assert_eq!(doubts(&config), [""; 0], "all are good");
        // A core that runs keeps nobody from looking.
        let core = DirectoryLock::take(&config.data_dir).expect("free");
        assert_eq!(doubts(&config), [""; 0]);
        drop(core);

        // Of another plugin, of nobody, no token at all, revoked.
        let attic = fs::read_to_string(path("attic")).expect("there");
        for (name, content) in [
            ("shed", attic.as_str()),
            ("shed", "0123456789abcdef0123456789abcdef"),
            ("shed", "short"),
            ("operator", attic.as_str()),
        ] {
            let good = fs::read_to_string(path(name)).expect("there");
            fs::write(path(name), content).expect("written");
            let told = doubts(&config);
            let named = path(name).display().to_string();
            assert!(told.len() == 1 && told[0].contains(&named), "{told:?}");
            assert!(told[0].contains("remove it and run init"), "{told:?}");
            assert!(!told[0].contains(content.trim()), "no secret: {told:?}");
            fs::write(path(name), good).expect("written");
        }
        let access = read_credentials(&security).expect("there");
        let of_shed = access::Which::OfPlugin(plugins[0].clone());
        access.revoke(&of_shed).expect("revoked");
        let told = doubts(&config);
        assert!(told.len() == 1 && told[0].contains("\"shed\""), "{told:?}");

        // The configuration may give a plugin the same file.
        let token = Token::from_text(&fs::read_to_string(path("shed")).expect("there"));
        let manifest =
            crate::plugin_manager::Manifest::new(plugins[0].clone(), Kind::Remote { token });
        config.plugins.push(manifest);
        assert_eq!(doubts(&config), [""; 0]);
        fs::remove_file(path("shed")).expect("there");
        assert_eq!(doubts(&config), [""; 0], "made anew");
    }

    #[test]
    fn while_a_core_runs_it_is_asked_for_tokens() {
        let home = tempfile::tempdir().expect("a directory");
        let config = Config::for_tests(home.path());
        let _core = DirectoryLock::take(&config.data_dir).expect("free");
        let error = init(&config, &[], Tokens::Kept)
            .expect_err("in use")
            .to_string();
        assert!(error.contains("corectl tokens create"), "{error}");
    }

    #[test]
    fn what_is_made_at_once_by_several_is_one_whole() {
        let home = tempfile::tempdir().expect("a directory");
        let config = Config::for_tests(home.path());
        std::thread::scope(|scope| {
            for _ in 0..8 {
                // All but one may be told that it is in use.
                scope.spawn(|| init(&config, &[], Tokens::Kept).map(drop));
            }
        });
        init(&config, &[], Tokens::Kept).expect("whole");
        let path = |name| config.data_dir.join("security").join(name);
        let core = core_tls::Pin::of(&pem(&path("ca.pem"))[0]);
        let chain = pem(&path("server.pem"));
        assert_eq!(core_tls::Pin::of(&chain[1]), core, "signed by another CA");
        let authority = fs::read_to_string(path("ca.pem")).expect("there");
        crate::transport::Tls::new(&path("server.pem"), &path("server.key"), &authority)
            .expect("the key is the certificate's");
    }

    fn pem(path: &Path) -> Vec<rustls::pki_types::CertificateDer<'static>> {
        use rustls::pki_types::pem::PemObject as _;
        let found = rustls::pki_types::CertificateDer::pem_file_iter(path).expect("there");
        found.map(|one| one.expect("PEM")).collect()
    }

    #[test]
    fn the_configuration_is_accepted_and_left_alone() {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join("core.toml");
        let names = ["core.lan".to_owned(), "192.168.1.10".to_owned()];
        assert_eq!(configuration(&path, &names).expect("made").made, Made::Now);
        assert_eq!(configuration(&path, &[]).expect("there").made, Made::Before);
        let loaded = crate::config::load(&crate::config::Flags::default(), [], home.path());
        let listen = loaded.expect("accepted").config.listen;
        assert_eq!(listen.tls_names, names);
        assert_eq!(listen.tls.len(), 1);
        fs::remove_file(&path).expect("there");
        configuration(&path, &[]).expect("made");
        crate::config::load(&crate::config::Flags::default(), [], home.path()).expect("accepted");
    }
}
