//! TLS, as the configuration wants it: the authority, the certificate that is shown, and where plugins
//! on other machines find the core.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::Error;
use crate::config::{Config, Listen};
use crate::plugin_manager;
use crate::security::authority::{Authority, Made};
use crate::security::operator_grants::OperatorGrants;
use crate::security::{Access, Credentials, access};
use crate::task::blocking;
use crate::transport;

/// How often the files of the certificate are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Where credentials and certificates are kept, in the data directory.
pub(super) fn directory(config: &Config) -> PathBuf {
    config.data_dir.join("security")
}

/// What was made or found for TLS.
pub(super) struct Prepared {
    pub(super) listener: transport::Tls,
    pub(super) access: access::Tls,
}

/// Makes or finds what TLS needs; `None`: nothing listens with it. `ports`: those that were bound.
pub(super) fn prepare(config: &Config, bound: &[SocketAddr]) -> Result<Option<Prepared>, Error> {
    let listen = &config.listen;
    if listen.tls.is_empty() {
        return Ok(None);
    }
    let (authority, _) = make(config)?;
    let (certificate, key) = match (&listen.tls_certificate, &listen.tls_key) {
        (Some(certificate), Some(key)) => (certificate.clone(), key.clone()),
        _ => authority.server_files(),
    };
    let listener = transport::Tls::new(&certificate, &key, authority.bundle_pem())?;
    let addresses = addresses(listen, bound);
    Ok(Some(Prepared {
        listener,
        access: access::Tls {
            authority,
            addresses,
            certificate_life: config.security.certificate_life,
        },
    }))
}

/// The authority, and the core's own certificate where no other is configured.
///
/// # Errors
/// [`Error::Authority`].
pub(super) fn make(config: &Config) -> Result<(Authority, [Made; 2]), Error> {
    let (authority, made) = Authority::open_or_make(&directory(config))?;
    let certificate = match config.listen.tls_certificate {
        Some(_) => Made::Before,
        None => authority.server_certificate(&names(&config.listen))?,
    };
    Ok((authority, [made, certificate]))
}

/// As [`make`], for `core-server init`.
///
/// # Errors
/// [`Error::Authority`].
pub(crate) fn make_certificates(config: &Config) -> Result<[Made; 2], Error> {
    Ok(make(config)?.1)
}

/// The names and addresses that the core's certificate is for.
fn names(listen: &Listen) -> Vec<String> {
    let mut names = reachable_names(listen);
    names.extend(["localhost", "127.0.0.1", "::1"].map(str::to_owned));
    let mut seen = std::collections::BTreeSet::new();
    names.retain(|name| seen.insert(name.clone()));
    names
}

/// Those by which other machines may reach it, likeliest first.
fn reachable_names(listen: &Listen) -> Vec<String> {
    if !listen.tls_names.is_empty() {
        return listen.tls_names.clone();
    }
    let mut names: Vec<_> = listen
        .tls
        .iter()
        .map(|address| address.ip().to_canonical())
        .filter(|address| !address.is_unspecified() && !address.is_loopback())
        .map(|address| address.to_string())
        .collect();
    if listen
        .tls
        .iter()
        .any(|address| address.ip().is_unspecified())
    {
        names.extend(own_address().map(|address| address.to_string()));
        names.extend(host_name());
    }
    names
}

/// Where plugins on other machines are told to go.
fn addresses(listen: &Listen, bound: &[SocketAddr]) -> Vec<String> {
    let Some(port) = bound.first().map(SocketAddr::port) else {
        return Vec::new();
    };
    let mut names = reachable_names(listen);
    if names.is_empty() {
        // It is for this machine only.
        names.push("127.0.0.1".to_owned());
    }
    let with_port = |name: String| match name.parse::<IpAddr>() {
        Ok(address) => SocketAddr::new(address, port).to_string(),
        Err(_) => format!("{name}:{port}"),
    };
    names.into_iter().map(with_port).collect()
}

/// The address that this machine would speak from. Nothing is sent.
fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind((IpAddr::from([0, 0, 0, 0]), 0)).ok()?;
    // For documentation (RFC 5737): only the choice of a route is asked for.
    socket.connect((IpAddr::from([192, 0, 2, 1]), 9)).ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback() && !address.is_unspecified()).then_some(address)
}

fn host_name() -> Option<String> {
    let name = rustix::system::uname();
    let name = name.nodename().to_str().ok()?.to_owned();
    let is_name = |name: &String| {
        !name.is_empty()
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.'))
    };
    Some(name).filter(is_name)
}

/// Binds TCP addresses; with where they are, the free ports that were taken among them.
pub(super) async fn bind_all(
    addresses: &[SocketAddr],
) -> Result<(Vec<TcpListener>, Vec<SocketAddr>), Error> {
    let mut listeners = Vec::new();
    for address in addresses {
        listeners.push(transport::bind_tcp(*address).await?);
    }
    let bound = listeners
        .iter()
        .filter_map(|listener| listener.local_addr().ok());
    let bound = bound.collect();
    Ok((listeners, bound))
}

/// The credentials that are kept, and what TLS shows.
pub(super) fn open_access(
    config: &Config,
    bound: &[SocketAddr],
    credentials: Credentials,
) -> Result<(Option<transport::Tls>, Access), Error> {
    let directory = directory(config);
    let prepared = prepare(config, bound)?;
    let (listener, tls) = match prepared {
        Some(prepared) => (Some(prepared.listener), Some(prepared.access)),
        None => (None, None),
    };
    let access = Access::open(&directory, credentials, tls);
    let access = access.map_err(|source| Error::Credentials {
        path: directory,
        source,
    })?;
    Ok((listener, access))
}

/// Shows another certificate when its files have changed, until `stop` is cancelled. One that cannot be used
/// is said once, and the one before is shown.
pub(super) async fn follow_files(tls: transport::Tls, stop: CancellationToken) {
    let look = || {
        let tls = tls.clone();
        blocking(move || tls.seen())
    };
    let mut follower = tls.follower();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        if !follower.look(look().await) {
            continue;
        }
        let reload = {
            let tls = tls.clone();
            blocking(move || tls.reload())
        };
        match reload.await {
            Ok(()) => {
                tracing::info!("the TLS certificate has changed; new connections are shown it")
            }
            Err(error) => {
                let why = crate::error::chain(&error);
                tracing::warn!("the TLS certificate before is kept: {why}");
            }
        }
    }
}

/// What operators have granted.
pub(super) fn read_grants(data_dir: &Path) -> Result<OperatorGrants, Error> {
    let read = plugin_manager::read_grants(data_dir);
    read.map_err(|source| Error::Grants {
        path: data_dir.join("security"),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listen(tls: &[&str], names: &[&str]) -> Listen {
        let mut listen = Config::default().listen;
        listen.tls = tls.iter().map(|text| text.parse().expect(text)).collect();
        listen.tls_names = names.iter().map(|name| (*name).to_owned()).collect();
        listen
    }

    #[test]
    fn a_certificate_is_for_where_the_core_listens_and_for_this_machine() {
        let names = names(&listen(&["192.168.1.7:7443", "127.0.0.1:7443"], &[]));
        assert_eq!(names, ["192.168.1.7", "localhost", "127.0.0.1", "::1"]);
    }

    #[test]
    fn names_that_are_given_come_first_in_join_strings() {
        let listen = listen(&["0.0.0.0:0"], &["core.lan", "fd00::7"]);
        let bound = ["0.0.0.0:7443".parse().expect("good")];
        assert_eq!(
            addresses(&listen, &bound),
            ["core.lan:7443", "[fd00::7]:7443"]
        );
    }

    #[test]
    fn one_that_only_this_machine_reaches_says_so() {
        let bound = ["127.0.0.1:7443".parse().expect("good")];
        let addresses = addresses(&listen(&["127.0.0.1:0"], &[]), &bound);
        assert_eq!(addresses, ["127.0.0.1:7443"]);
    }
}
