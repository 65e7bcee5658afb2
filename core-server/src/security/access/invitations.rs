//! Invitations: each good once, for a while, and not for those who guess. Pure.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use subtle::ConstantTimeEq as _;
use tokio::time::Instant;

use crate::config::Permission;
use crate::security::credentials::Digest;
use crate::types::PluginName;

/// Wrong secrets that void an invitation.
const GUESSES: u32 = 5;
/// Between two attempts of one address.
const ATTEMPT_EVERY: Duration = Duration::from_secs(1);
/// Addresses that are remembered at once; more attempts in a second are refused.
const MAX_ADDRESSES: usize = 1_024;
/// Invitations open at once.
const MAX_OPEN: usize = 256;

/// What a plugin is granted when it has joined.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Promised {
    /// What.
    pub permissions: Vec<Permission>,
    /// By whom: "uid 1000".
    pub by: String,
}

/// What an invitation is for.
#[derive(Clone, Debug)]
pub(super) struct Invitation {
    pub(super) plugin: PluginName,
    pub(super) secret: Digest,
    pub(super) until: Instant,
    /// For people, in seconds since 1970.
    pub(super) created_at: u64,
    pub(super) expires_at: u64,
    pub(super) promised: Promised,
    wrong: u32,
}

impl Invitation {
    pub(super) fn new(
        plugin: PluginName,
        secret: Digest,
        until: Instant,
        (created_at, expires_at): (u64, u64),
        promised: Promised,
    ) -> Self {
        Self {
            plugin,
            secret,
            until,
            created_at,
            expires_at,
            promised,
            wrong: 0,
        }
    }
}

/// Why somebody is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum No {
    /// The invitation is unknown, used, over, void, or the secret is wrong: which, is not told.
    Invalid,
    /// This address tried less than a second ago.
    TooSoon,
}

/// The open invitations, and who has just tried.
#[derive(Debug, Default)]
pub(super) struct Invitations {
    open: HashMap<String, Invitation>,
    attempts: HashMap<IpAddr, Instant>,
}

impl Invitations {
    /// Opens one. `false`: there are too many.
    pub(super) fn add(&mut self, id: String, invitation: Invitation, now: Instant) -> bool {
        self.open.retain(|_, invitation| invitation.until > now);
        let room = self.open.len() < MAX_OPEN;
        if room {
            self.open.insert(id, invitation);
        }
        room
    }

    /// Uses one up.
    pub(super) fn take(
        &mut self,
        id: &str,
        secret: &Digest,
        from: Option<IpAddr>,
        now: Instant,
    ) -> Result<Invitation, No> {
        if let Some(from) = from {
            self.attempt(from, now)?;
        }
        let invitation = self.open.get_mut(id).ok_or(No::Invalid)?;
        if invitation.until <= now {
            self.open.remove(id);
            return Err(No::Invalid);
        }
        if !bool::from(invitation.secret.as_slice().ct_eq(secret.as_slice())) {
            invitation.wrong += 1;
            if invitation.wrong >= GUESSES {
                self.open.remove(id);
            }
            return Err(No::Invalid);
        }
        self.open.remove(id).ok_or(No::Invalid)
    }

    fn attempt(&mut self, from: IpAddr, now: Instant) -> Result<(), No> {
        let from = network_of(from);
        let recent = |at: &Instant| now.saturating_duration_since(*at) < ATTEMPT_EVERY;
        if self.attempts.get(&from).is_some_and(recent) {
            return Err(No::TooSoon);
        }
        if self.attempts.len() >= MAX_ADDRESSES {
            self.attempts.retain(|_, at| recent(at));
            if self.attempts.len() >= MAX_ADDRESSES {
                return Err(No::TooSoon);
            }
        }
        self.attempts.insert(from, now);
        Ok(())
    }

    /// Closes those for which it holds; how many.
    pub(super) fn close(&mut self, is_over: impl Fn(&str, &Invitation) -> bool) -> usize {
        let before = self.open.len();
        self.open.retain(|id, invitation| !is_over(id, invitation));
        before - self.open.len()
    }

    /// Those that are open now.
    pub(super) fn open(&self, now: Instant) -> impl Iterator<Item = (&String, &Invitation)> {
        let live = move |(_, invitation): &(&String, &Invitation)| invitation.until > now;
        self.open.iter().filter(live)
    }
}

/// Who counts as one: of IPv6 a host has as many addresses as it likes, in one network of 64 bits.
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::from((address.to_bits() >> 64 << 64).to_be_bytes()),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: Digest = [1; 32];
    const WRONG: Digest = [2; 32];

    fn invited(now: Instant) -> Invitations {
        let mut invitations = Invitations::default();
        let plugin = PluginName::parse("lamp").expect("good name");
        let until = now + Duration::from_secs(600);
        let invitation = Invitation::new(plugin, SECRET, until, (0, 600), Promised::default());
        assert!(invitations.add("a".to_owned(), invitation, now));
        invitations
    }

    #[test]
    fn an_invitation_is_good_once() {
        let now = Instant::now();
        let mut invitations = invited(now);
        let taken = invitations.take("a", &SECRET, None, now).expect("good");
        assert_eq!(taken.plugin.as_str(), "lamp");
        let again = invitations.take("a", &SECRET, None, now).map(drop);
        assert_eq!(again, Err(No::Invalid));
    }

    #[test]
    fn an_invitation_ends_with_its_time() {
        let now = Instant::now();
        let mut invitations = invited(now);
        let late = now + Duration::from_secs(600);
        assert_eq!(invitations.open(late).count(), 0);
        let late = invitations.take("a", &SECRET, None, late).map(drop);
        assert_eq!(late, Err(No::Invalid));
    }

    #[test]
    fn five_wrong_secrets_void_it_and_four_do_not() {
        let now = Instant::now();
        let mut invitations = invited(now);
        for _ in 0..4 {
            let wrong = invitations.take("a", &WRONG, None, now).map(drop);
            assert_eq!(wrong, Err(No::Invalid));
        }
        assert_eq!(invitations.open(now).count(), 1);
        let wrong = invitations.take("a", &WRONG, None, now).map(drop);
        assert_eq!(wrong, Err(No::Invalid));
        let right = invitations.take("a", &SECRET, None, now).map(drop);
        assert_eq!(right, Err(No::Invalid), "void");
    }

    #[test]
    fn a_host_is_one_however_many_addresses_it_has() {
        let network = |text: &str| network_of(text.parse().expect("an address"));
        assert_eq!(network("2001:db8::1"), network("2001:db8::ffff:2"));
        assert_ne!(network("2001:db8:0:1::1"), network("2001:db8:0:2::1"));
        assert_eq!(network("::ffff:10.0.0.1"), network("10.0.0.1"));
        assert_ne!(network("10.0.0.1"), network("10.0.0.2"));
    }

    #[test]
    fn an_address_has_one_attempt_a_second_and_others_are_not_kept_waiting() {
        let now = Instant::now();
        let mut invitations = invited(now);
        let (one, other) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let mut take =
            |secret: &Digest, from, at| invitations.take("a", secret, Some(from), at).map(drop);
        assert_eq!(take(&WRONG, one, now), Err(No::Invalid));
        assert_eq!(
            take(&SECRET, one, now + Duration::from_millis(999)),
            Err(No::TooSoon)
        );
        assert_eq!(take(&SECRET, other, now), Ok(()));
    }

    #[test]
    fn a_crowd_of_addresses_is_bounded() {
        let now = Instant::now();
        let mut invitations = invited(now);
        for number in 0..2_000_u32 {
            let from = Some(IpAddr::from(number.to_be_bytes()));
            let _refused = invitations.take("b", &WRONG, from, now).map(drop);
        }
        assert_eq!(invitations.attempts.len(), MAX_ADDRESSES);
        let from = Some(IpAddr::from([99, 0, 0, 1]));
        let later = now + ATTEMPT_EVERY;
        assert!(invitations.take("a", &SECRET, from, later).is_ok());
    }
}
