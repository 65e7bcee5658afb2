//! The contract of Core Runtime, as Rust: messages, clients and servers generated from
//! `proto/coreruntime/v1/`, and the constants that both sides of the wire share ([`contract`]).
//!
//! The comments in the `.proto` files are the specification; they are the documentation of the
//! generated items too.

pub mod contract;
pub mod embed;
pub mod encoded;
pub mod received;

pub use coreruntime::v1;
pub use prost_types::Timestamp;

/// The package tree, as prost expects it.
#[doc(hidden)]
pub mod coreruntime {
    /// Messages and clients of package `coreruntime.v1`.
    #[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub)]
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/messages/coreruntime.v1.rs"));
    }
}

/// Servers of package `coreruntime.v1`, for the core and for tools that play one.
#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub)]
pub mod servers {
    include!(concat!(env!("OUT_DIR"), "/servers/coreruntime.v1.rs"));
}

/// `google.rpc`, vendored: the body of errors.
#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub)]
pub mod google {
    /// Messages of package `google.rpc`.
    pub mod rpc {
        include!(concat!(env!("OUT_DIR"), "/messages/google.rpc.rs"));
    }
}

/// All descriptors with their comments, a serialised `FileDescriptorSet`: for reflection and for
/// tests over every RPC.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
