//! Compiles `proto/` without a `protoc` on the machine: protox parses, prost and tonic generate.
//!
//! Two passes. The first makes all messages and the clients. The second makes only the servers, over
//! the messages of the first, except that `EventBus.Subscribe` answers with
//! [`crate::encoded::SubscribeResponse`]: events that were encoded once and are only copied.

use std::path::PathBuf;
use std::{env, fs};

const PROTOS: [&str; 11] = [
    "coreruntime/v1/access.proto",
    "coreruntime/v1/enrollment.proto",
    "coreruntime/v1/error.proto",
    "coreruntime/v1/event_bus.proto",
    "coreruntime/v1/introspection.proto",
    "coreruntime/v1/plugin_channel.proto",
    "coreruntime/v1/plugin_manager.proto",
    "coreruntime/v1/state_engine.proto",
    "coreruntime/v1/storage.proto",
    "coreruntime/v1/storage_admin.proto",
    "google/rpc/error_details.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=coreruntime");
    println!("cargo:rerun-if-changed=google");
    let out = PathBuf::from(env::var("OUT_DIR")?);

    let mut compiler = protox::Compiler::new(["."])?;
    compiler.include_imports(true).include_source_info(true);
    compiler.open_files(PROTOS)?;
    fs::write(
        out.join("descriptors.bin"),
        compiler.encode_file_descriptor_set(),
    )?;
    let descriptors = compiler.file_descriptor_set();

    let mut config = prost_build::Config::new();
    config.bytes(["."]);
    // Two answers with the same facts are the same bytes.
    config.btree_map([".google.rpc.ErrorInfo.metadata"]);
    tonic_prost_build::configure()
        .build_server(false)
        .out_dir(make_dir(out.join("messages"))?)
        .compile_fds_with_config(descriptors.clone(), config)?;

    tonic_prost_build::configure()
        .build_client(false)
        .extern_path(".coreruntime.v1", "crate::v1")
        .extern_path(
            ".coreruntime.v1.EventBusSubscribeResponse",
            "crate::encoded::SubscribeResponse",
        )
        .out_dir(make_dir(out.join("servers"))?)
        .compile_fds_with_config(descriptors, prost_build::Config::new())?;
    Ok(())
}

fn make_dir(dir: PathBuf) -> std::io::Result<PathBuf> {
    fs::create_dir_all(&dir)?;
    Ok(dir)
}
