//! Links the program as one static file without a C library, at fixed addresses.

fn main() {
    for argument in ["-nostdlib", "-nostartfiles", "-static", "-no-pie", "-Wl,--build-id=none", "-Wl,-z,norelro"] {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/workload.s");
    println!("cargo::rerun-if-changed=src/tiles.s");
}
