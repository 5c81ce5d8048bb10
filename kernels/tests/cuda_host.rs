//! The CUDA sources, compiled as C++ and run by an emulation of a block, against references in double: see
//! `cuda/host`. Skipped where there is no C++ compiler.

use std::env;
use std::path::Path;
use std::process::Command;

fn check(name: &str) {
    let compiler = env::var_os("CXX").unwrap_or_else(|| "c++".into());
    if Command::new(&compiler).arg("--version").output().is_err() {
        eprintln!("skipped: no C++ compiler ({})", compiler.display());
        return;
    }
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda");
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("cuda_host_{name}"));
    let compiled = Command::new(&compiler)
        .args([
            "-std=c++17",
            "-O2",
            "-U_FORTIFY_SOURCE",
            "-Wall",
            "-Werror",
            "-fno-strict-aliasing",
            "-Wno-unknown-pragmas",
        ])
        .args(["-DSIDENOTE_HOST", "-I"])
        .arg(&sources)
        .arg("-o")
        .arg(&program)
        .arg(sources.join("host").join(name).with_extension("cpp"))
        .output()
        .expect("the compiler runs");
    assert!(
        compiled.status.success(),
        "{name} does not compile:\n{}",
        String::from_utf8_lossy(&compiled.stderr)
    );
    let run = Command::new(&program).output().expect("the program runs");
    assert!(
        run.status.success(),
        "{name}:\n{}{}",
        String::from_utf8_lossy(&run.stdout),
        String::from_utf8_lossy(&run.stderr)
    );
}

#[test]
fn norms() {
    check("norm");
}

#[test]
fn attention() {
    check("attention");
}

#[test]
fn attention_in_float() {
    check("attention_f32");
}

#[test]
fn decoding() {
    check("decode");
}

#[test]
fn pointwise() {
    check("pointwise");
}

#[test]
fn embedding() {
    check("embedding");
}

#[test]
fn matrix_products() {
    check("matmul");
}

#[test]
fn cross_entropy() {
    check("cross_entropy");
}

#[test]
fn optimisers() {
    check("optimiser");
}

#[test]
fn weights_in_blocks() {
    check("quantised");
}

#[test]
fn top_k() {
    check("topk");
}
