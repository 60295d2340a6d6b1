#[test]
fn dump() {
    print!("{}", memtrace::doctor::examine(&memtrace::doctor::gather()).render_text(false, 100));
}
