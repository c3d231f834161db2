//! Compiles `proto/externalscaler.proto` without `protoc`: protox is a compiler in Rust.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(["externalscaler.proto"], ["proto"])?;

    // Reflection serves the same descriptors to grpcurl.
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("externalscaler.bin"), descriptors.encode_to_vec())?;

    // The tests are KEDA, and need the client.
    tonic_prost_build::configure().build_transport(false).compile_fds(descriptors)?;
    Ok(())
}
