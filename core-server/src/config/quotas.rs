//! `[quotas]`: how much each plugin may use of the core. `[plugins.NAME.quotas]` says it of one plugin.
//! `docs/reference/limits.md` shows the same table, and a test keeps the two in step.

use super::shape::{Field, Shape};
use super::tree::{Data, View};

macro_rules! quotas {
    ($($(#[doc = $about:literal])+ $name:ident = $key:literal: $kind:ident $limit:expr, $unit:literal;)+) => {
        /// What a plugin may use only so much of.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Quota { $($(#[doc = $about])+ $name,)+ }

        impl Quota {
            /// All of them, in the order of the documentation.
            pub const ALL: [Self; COUNT] = [$(Self::$name),+];

            /// Its key in `[quotas]`.
            #[must_use]
            pub fn key(self) -> &'static str {
                match self { $(Self::$name => $key),+ }
            }

            /// What is counted.
            #[must_use]
            pub fn unit(self) -> &'static str {
                match self { $(Self::$name => $unit),+ }
            }
        }

        const COUNT: usize = [$($key),+].len();

        impl Default for Quotas {
            fn default() -> Self {
                Self { limits: [$($limit),+] }
            }
        }

        /// `[quotas]`.
        pub(super) const FIELDS: &[Field] = &[$(
            Field::new($key, shape!($kind), concat!($($about),+)).preset(|| data!($kind $limit)),
        )+];

        /// `[plugins.NAME.quotas]`: without presets, for what is not said there `[quotas]` says.
        pub(super) const OWN_FIELDS: &[Field] = &[$(
            Field::new($key, shape!($kind), concat!($($about),+)),
        )+];
    };
}

macro_rules! shape {
    (count) => {
        Shape::Integer(0..=MOST)
    };
    (bytes) => {
        Shape::Size(0..=MOST_BYTES)
    };
}

macro_rules! data {
    (count $limit:expr) => {
        Data::Integer($limit as i64)
    };
    (bytes $limit:expr) => {
        Data::Size($limit)
    };
}

/// Whoever may do more a second, or hold more at once, may as well be unlimited.
const MOST: u64 = 1_000_000;
const MOST_BYTES: u64 = 64 << 30;

quotas! {
    /// Events that it publishes in a second: single ones, those of batches, and those of Storage writes.
    PublishesPerSecond = "publishes_per_second": count 2_000, "events per second";
    /// Bytes of data of the events that it publishes in a second.
    PublishBytesPerSecond = "publish_bytes_per_second": bytes 8 << 20, "bytes per second";
    /// Calls that it makes in a second.
    CallsPerSecond = "calls_per_second": count 2_000, "calls per second";
    /// Keys of Storage that it writes or deletes in a second, each key and each check of an `Apply` for itself.
    StorageWritesPerSecond = "storage_writes_per_second": count 500, "writes per second";
    /// Bytes of values that it writes to Storage in a second.
    StorageWriteBytesPerSecond = "storage_write_bytes_per_second": bytes 4 << 20, "bytes per second";
    /// Keys of Storage that it reads in a second; of a page, and of what a watch begins with, each hundred entries count one.
    StorageReadsPerSecond = "storage_reads_per_second": count 5_000, "reads per second";
    /// Keys of the state that it writes or deletes in a second, and services that it registers or takes back.
    StateWritesPerSecond = "state_writes_per_second": count 2_000, "writes per second";
    /// Subscriptions that it has at once.
    Subscriptions = "subscriptions": count 64, "subscriptions";
    /// Connections that it has at once.
    Connections = "connections": count 8, "connections";
    /// Requests and calls that it has in flight at once.
    RequestsInFlight = "requests_in_flight": count 1_024, "requests";
}

/// A limit for each [`Quota`]; 0: none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quotas {
    limits: [u64; COUNT],
}

impl Quotas {
    /// No limit for anything.
    pub const UNLIMITED: Self = Self { limits: [0; COUNT] };

    /// The limit of one; 0: none.
    #[must_use]
    pub fn limit(&self, quota: Quota) -> u64 {
        self.limits[quota as usize]
    }

    /// Sets the limit of one; 0: none.
    pub fn set(&mut self, quota: Quota, limit: u64) {
        self.limits[quota as usize] = limit;
    }

    /// From a checked `[quotas]`.
    pub(super) fn read(section: View<'_>) -> Self {
        OwnQuotas::read(section).over(Self::default())
    }
}

/// What is said of one plugin alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnQuotas {
    limits: [Option<u64>; COUNT],
}

impl OwnQuotas {
    /// Sets the limit of one; 0: none.
    pub fn set(&mut self, quota: Quota, limit: u64) {
        self.limits[quota as usize] = Some(limit);
    }

    /// These where they say something, else those.
    #[must_use]
    pub fn over(&self, others: Quotas) -> Quotas {
        let mut quotas = others;
        for (limit, own) in quotas.limits.iter_mut().zip(self.limits) {
            *limit = own.unwrap_or(*limit);
        }
        quotas
    }

    /// From a checked `[plugins.NAME.quotas]`.
    pub(super) fn read(section: View<'_>) -> Self {
        let mut quotas = Self::default();
        for quota in Quota::ALL {
            quotas.limits[quota as usize] = section.number(quota.key()).map(|limit| limit as u64);
        }
        quotas
    }
}
