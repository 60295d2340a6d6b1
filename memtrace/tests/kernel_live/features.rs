//! What `memtrace doctor` asks the kernel.

use memtrace::kernel::features::{State, probe};

#[test]
fn a_kernel_that_can_trace_has_every_required_feature() {
    let features = probe();
    for feature in &features {
        println!("{}: {:?}", feature.name, feature.state);
    }
    for feature in features.iter().filter(|feature| feature.required) {
        assert_eq!(feature.state, State::Available, "{}", feature.name);
    }
    assert!(features.iter().filter(|feature| feature.required).count() >= 6);
}
