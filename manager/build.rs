//! Compiles `src/allocator.c` into the binary: what the C library's allocator is told before the first thread.

const SOURCE: &str = "src/allocator.c";

fn main() -> Result<(), cc::Error> {
    println!("cargo::rerun-if-changed={SOURCE}");
    for object in cc::Build::new().file(SOURCE).try_compile_intermediates()? {
        // As an object it is there although nobody calls it; a library would be left out.
        println!("cargo::rustc-link-arg-bins={}", object.display());
    }
    Ok(())
}
