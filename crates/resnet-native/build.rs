//! Says whether code for x86-64 is compiled (`cfg(x86_code)`): on that architecture, unless the variable
//! `RESNET_NO_X86` leaves it out. Then what other processors run is compiled, and can be tested, on this one.

fn main() {
    println!("cargo::rerun-if-env-changed=RESNET_NO_X86");
    println!("cargo::rustc-check-cfg=cfg(x86_code)");
    let is_x86 = std::env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|architecture| architecture == "x86_64");
    if is_x86 && std::env::var_os("RESNET_NO_X86").is_none() {
        println!("cargo::rustc-cfg=x86_code");
    }
}
