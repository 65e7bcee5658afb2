//! Join strings: everything that a plugin on another machine must know to get its certificate.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

/// How a join string begins; the number is the version of its form.
const PREFIX: &str = "corejoin1";

/// SHA-256 of a certificate in DER.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Pin([u8; 32]);

impl Pin {
    /// Of a certificate.
    #[must_use]
    pub fn of(certificate_der: &[u8]) -> Self {
        Self(Sha256::digest(certificate_der).into())
    }

    /// The digest.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Pin {
    /// In hex.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Pin({self})")
    }
}

impl FromStr for Pin {
    type Err = BadJoinString;

    fn from_str(text: &str) -> Result<Self, BadJoinString> {
        let bad = BadJoinString("a fingerprint has 64 hex digits");
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(bad);
        }
        let mut digest = [0; 32];
        for (byte, place) in digest.iter_mut().zip(0..) {
            let digits = text.get(place * 2..place * 2 + 2);
            let value = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
            *byte = value.ok_or(bad)?;
        }
        Ok(Self(digest))
    }
}

/// Why a text is no [`JoinString`]. Says nothing of what stands in it: it holds a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this is no join string ({0}); make one with `corectl plugins invite NAME` and copy all of it"
)]
pub struct BadJoinString(&'static str);

/// What a plugin on another machine must know to get its certificate:
/// `corejoin1.<id>.<secret>.<pin>.<address>[,<address>…]`. `Debug` shows no secret.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinString {
    /// The invitation.
    pub id: String,
    /// Its secret.
    pub secret: String,
    /// The CA's certificate.
    pub pin: Pin,
    /// Where the core may be reached, `host:port`, likeliest first. Not empty.
    pub addresses: Vec<String>,
}

impl fmt::Debug for JoinString {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("JoinString")
            .field("id", &self.id)
            .field("pin", &self.pin)
            .field("addresses", &self.addresses)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for JoinString {
    /// All of it, the secret too: for the one who is invited.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            id,
            secret,
            pin,
            addresses,
        } = self;
        write!(
            formatter,
            "{PREFIX}.{id}.{secret}.{pin}.{}",
            addresses.join(",")
        )
    }
}

impl FromStr for JoinString {
    type Err = BadJoinString;

    fn from_str(text: &str) -> Result<Self, BadJoinString> {
        let mut parts = text.trim().splitn(5, '.');
        if parts.next() != Some(PREFIX) {
            return Err(BadJoinString("it does not begin with \"corejoin1.\""));
        }
        let mut part = || {
            let part = parts.next().filter(|part| !part.is_empty());
            part.ok_or(BadJoinString("a part is missing"))
        };
        let (id, secret, pin) = (part()?.to_owned(), part()?.to_owned(), part()?.parse()?);
        let addresses: Vec<_> = part()?.split(',').map(str::to_owned).collect();
        let plausible = |address: &String| {
            address
                .rsplit_once(':')
                .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
        };
        if !addresses.iter().all(plausible) {
            return Err(BadJoinString("an address is not host:port"));
        }
        Ok(Self {
            id,
            secret,
            pin,
            addresses,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn invited() -> JoinString {
        JoinString {
            id: "1f2e".to_owned(),
            secret: "cafe".to_owned(),
            pin: Pin::of(b"certificate"),
            addresses: vec!["192.168.1.7:7443".to_owned(), "[fd00::7]:7443".to_owned()],
        }
    }

    #[test]
    fn a_join_string_is_read_as_it_was_written() {
        let text = invited().to_string();
        assert_eq!(format!(" {text}\n").parse(), Ok(invited()));
    }

    #[test]
    fn what_was_cut_or_changed_is_refused_without_showing_it() {
        let whole = invited().to_string();
        let cut = &whole[..whole.len() - 60];
        for text in [
            "",
            "corejoin2.a.b.c.d:1",
            cut,
            "corejoin1.a.b.zz.h:1",
            &whole.replace(":7443", ""),
        ] {
            let error = text.parse::<JoinString>().expect_err(text).to_string();
            assert!(!error.contains("cafe") && error.contains("plugins invite"));
        }
    }

    #[test]
    fn its_secret_is_not_shown() {
        assert!(!format!("{:?}", invited()).contains("cafe"));
    }
}
