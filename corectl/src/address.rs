//! Where the core is: `--addr`, else `CORE_ADDR`, else the operator socket.
//!
//! Finding it is a pure function over the environment and a test for existence, so that what the
//! error says was looked at is what was looked at.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::failure::Failure;

/// The operator socket's file name in each directory searched.
const OPERATOR_SOCKET: &str = "operator.sock";

/// A place that a core may listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    /// `unix:/path`
    Unix(PathBuf),
    /// `host:port`
    Tcp { host: String, port: u16 },
}

/// Who named the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Flag,
    Environment,
    Search,
}

/// An address and who named it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Located {
    pub(crate) address: Address,
    pub(crate) source: Source,
}

/// The part of the environment that counts here.
#[derive(Clone, Debug, Default)]
pub(crate) struct Environment {
    /// `CORE_ADDR`
    pub(crate) core_addr: Option<String>,
    /// `RUNTIME_DIRECTORY`, which systemd sets; several are separated by colons, the first counts.
    pub(crate) runtime_directory: Option<OsString>,
    /// `XDG_RUNTIME_DIR`
    pub(crate) xdg_runtime_dir: Option<OsString>,
}

impl Address {
    /// Reads `unix:/path` or `host:port`; `[::1]:7070` for IPv6.
    ///
    /// # Errors
    /// [`Failure::Usage`] with the two forms, and the likely one where it can be guessed.
    pub(crate) fn parse(text: &str) -> Result<Self, Failure> {
        let refuse = |message: &str| {
            let hint = if text.starts_with(['/', '.']) {
                format!("did you mean \"unix:{text}\"?")
            } else {
                "an address is unix:/path/to/operator.sock or host:port".to_owned()
            };
            Err(Failure::usage(format!("{message}: {text:?}"), hint))
        };
        if let Some(path) = text.strip_prefix("unix:") {
            // "unix:///run/x" is how URLs write it.
            let path = path.strip_prefix("//").unwrap_or(path);
            if path.is_empty() {
                return refuse("no path in address");
            }
            return Ok(Self::Unix(PathBuf::from(path)));
        }
        let Some((host, port)) = text.rsplit_once(':') else {
            return refuse("not an address");
        };
        let bracketed = host.starts_with('[') && host.ends_with(']');
        if host.is_empty() || host.contains(['/', ' ', '@']) || (host.contains(':') && !bracketed) {
            return refuse("not an address");
        }
        match port.parse() {
            Ok(port) if port > 0 => Ok(Self::Tcp {
                host: host.to_owned(),
                port,
            }),
            _ => refuse("no port number in address"),
        }
    }

    /// What is sent there can be read by nobody else on the way.
    pub(crate) fn is_local(&self) -> bool {
        match self {
            Self::Unix(_) => true,
            Self::Tcp { host, .. } => {
                let host = host.trim_matches(['[', ']']);
                host == "localhost"
                    || host
                        .parse::<std::net::IpAddr>()
                        .is_ok_and(|address| address.is_loopback())
            }
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(formatter, "unix:{}", path.display()),
            Self::Tcp { host, port } => write!(formatter, "{host}:{port}"),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Flag => "from --addr",
            Self::Environment => "from CORE_ADDR",
            Self::Search => "the operator socket that was found",
        })
    }
}

/// Finds the address: the flag, else `CORE_ADDR`, else the first operator socket that exists.
///
/// # Errors
/// [`Failure::Usage`] for an address that cannot be read, [`Failure::NoCore`] with every place looked
/// at when no socket exists.
pub(crate) fn locate(
    flag: Option<&str>,
    environment: &Environment,
    exists: impl Fn(&Path) -> bool,
) -> Result<Located, Failure> {
    let named =
        |text: &str, source| Address::parse(text).map(|address| Located { address, source });
    if let Some(text) = flag {
        return named(text, Source::Flag);
    }
    if let Some(text) = environment
        .core_addr
        .as_deref()
        .filter(|text| !text.is_empty())
    {
        return named(text, Source::Environment);
    }
    let mut tried = vec![
        "--addr (not given)".to_owned(),
        "CORE_ADDR (not set)".to_owned(),
    ];
    for (place, path) in operator_sockets(environment) {
        let Some(path) = path else {
            tried.push(format!("{place} (not set)"));
            continue;
        };
        if exists(&path) {
            return Ok(Located {
                address: Address::Unix(path),
                source: Source::Search,
            });
        }
        tried.push(format!("{} (not there)", path.display()));
    }
    Err(Failure::NoCore { tried })
}

/// The places of the operator socket, best first: what names the place, and the path if that is set.
fn operator_sockets(environment: &Environment) -> [(&'static str, Option<PathBuf>); 3] {
    let set = |value: &Option<OsString>| value.clone().filter(|value| !value.is_empty());
    let runtime = set(&environment.runtime_directory).map(|directories| {
        let first = directories
            .to_str()
            .and_then(|directories| directories.split(':').next())
            .map(PathBuf::from);
        first.unwrap_or_else(|| PathBuf::from(&directories))
    });
    let xdg = set(&environment.xdg_runtime_dir).map(PathBuf::from);
    [
        (
            "$RUNTIME_DIRECTORY",
            runtime.map(|directory| directory.join(OPERATOR_SOCKET)),
        ),
        (
            "$XDG_RUNTIME_DIR",
            xdg.map(|directory| directory.join("core-runtime").join(OPERATOR_SOCKET)),
        ),
        (
            "data/run",
            Some(Path::new("data/run").join(OPERATOR_SOCKET)),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: u16) -> Address {
        Address::Tcp {
            host: host.to_owned(),
            port,
        }
    }

    #[test]
    fn both_forms_of_address_are_read() {
        let table = [
            (
                "unix:/run/core.sock",
                Address::Unix("/run/core.sock".into()),
            ),
            (
                "unix:///run/core.sock",
                Address::Unix("/run/core.sock".into()),
            ),
            ("unix:data/run/x", Address::Unix("data/run/x".into())),
            ("localhost:7070", tcp("localhost", 7070)),
            ("[::1]:7070", tcp("[::1]", 7070)),
        ];
        for (text, expected) in table {
            assert_eq!(Address::parse(text).expect(text), expected);
        }
        for text in [
            "",
            "unix:",
            "localhost",
            "host:",
            "host:0",
            "host:70700",
            ":7070",
            "::1:7070",
            "a b:1",
            "http://host:1",
            "/run/core.sock",
        ] {
            let failure = Address::parse(text).expect_err(text);
            assert_eq!(failure.exit().number(), 2, "{text}");
        }
    }

    #[test]
    fn a_bare_path_gets_the_address_that_was_meant() {
        let failure = Address::parse("/run/core.sock").expect_err("a path is no address");
        assert_eq!(
            failure.hint().as_deref(),
            Some("did you mean \"unix:/run/core.sock\"?")
        );
    }

    #[test]
    fn only_this_machine_is_local() {
        for (text, local) in [
            ("unix:/x", true),
            ("localhost:1", true),
            ("127.0.0.9:1", true),
            ("[::1]:1", true),
            ("10.0.0.5:1", false),
            ("core.example:1", false),
        ] {
            assert_eq!(
                Address::parse(text).expect(text).is_local(),
                local,
                "{text}"
            );
        }
    }

    #[test]
    fn the_flag_beats_the_environment_and_that_beats_the_search() {
        let environment = Environment {
            core_addr: Some("unix:/env".to_owned()),
            xdg_runtime_dir: Some("/xdg".into()),
            ..Environment::default()
        };
        let located = locate(Some("unix:/flag"), &environment, |_| true).expect("given");
        assert_eq!(located.address, Address::Unix("/flag".into()));
        assert_eq!(located.source, Source::Flag);
        let located = locate(None, &environment, |_| true).expect("given");
        assert_eq!(located.address, Address::Unix("/env".into()));
        assert_eq!(located.source, Source::Environment);
    }

    #[test]
    fn the_first_operator_socket_that_exists_is_taken() {
        let environment = Environment {
            core_addr: Some(String::new()),
            runtime_directory: Some("/run/core:/run/other".into()),
            xdg_runtime_dir: Some("/run/user/7".into()),
        };
        let order = [
            "/run/core/operator.sock",
            "/run/user/7/core-runtime/operator.sock",
            "data/run/operator.sock",
        ];
        for (index, expected) in order.iter().enumerate() {
            let there = &order[index..];
            let located = locate(None, &environment, |path| {
                there.iter().any(|one| Path::new(one) == path)
            })
            .expect("one exists");
            assert_eq!(located.address, Address::Unix(expected.into()));
            assert_eq!(located.source, Source::Search);
        }
    }

    #[test]
    fn when_nothing_is_found_the_error_names_all_that_was_tried() {
        let environment = Environment {
            xdg_runtime_dir: Some("/run/user/7".into()),
            ..Environment::default()
        };
        let failure = locate(None, &environment, |_| false).expect_err("nothing exists");
        let message = failure.to_string();
        for place in [
            "--addr",
            "CORE_ADDR",
            "$RUNTIME_DIRECTORY (not set)",
            "/run/user/7/core-runtime/operator.sock",
            "data/run/operator.sock",
        ] {
            assert!(message.contains(place), "{message}");
        }
        assert_eq!(failure.exit().number(), 4);
    }
}
