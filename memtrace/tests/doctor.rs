#[test]
fn dump() {
    let t = std::time::Instant::now();
    println!("{:#?}", memtrace::kernel::features::probe());
    println!("{:?}", t.elapsed());
}
