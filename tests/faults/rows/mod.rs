//! The rows of the table, by theme. Each is one function that plays a fault and writes down what it finds.

pub(crate) mod chaos;
pub(crate) mod clock;
pub(crate) mod dependencies;
pub(crate) mod descriptors;
pub(crate) mod exits;
pub(crate) mod floods;
pub(crate) mod graph;
pub(crate) mod http2;
pub(crate) mod identity;
pub(crate) mod liveness;
pub(crate) mod mutations;
pub(crate) mod orphans;
pub(crate) mod output;
pub(crate) mod oversize;
pub(crate) mod policy;
pub(crate) mod resources;
pub(crate) mod shutdown;
pub(crate) mod slow_readers;
pub(crate) mod slowloris;
pub(crate) mod start;
pub(crate) mod stop;
pub(crate) mod storm;
pub(crate) mod upgrade;
