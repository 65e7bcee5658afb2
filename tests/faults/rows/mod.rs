//! The rows of the table, by theme. Each is one function that plays a fault and writes down what it finds.

pub(crate) mod calls;
pub(crate) mod chaos;
pub(crate) mod clock;
pub(crate) mod dependencies;
pub(crate) mod exits;
pub(crate) mod graph;
pub(crate) mod identity;
pub(crate) mod liveness;
pub(crate) mod network;
pub(crate) mod orphans;
pub(crate) mod output;
pub(crate) mod policy;
pub(crate) mod resources;
pub(crate) mod shutdown;
pub(crate) mod soak;
pub(crate) mod start;
pub(crate) mod stop;
pub(crate) mod storm;
pub(crate) mod swizzle;
pub(crate) mod upgrade;
