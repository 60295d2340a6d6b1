//! What `memtrace doctor` asks the kernel.

use memtrace::kernel::features::{REQUIRED, find, probe};
use memtrace::plan::host::FeatureState;

#[test]
fn a_kernel_that_can_trace_has_every_required_feature() {
    let features = probe();
    for feature in &features {
        println!("{}: {:?}", feature.name, feature.state);
    }
    for name in REQUIRED {
        let state = find(&features, name).map(|feature| &feature.state);
        assert_eq!(state, Some(&FeatureState::Available), "{name}");
    }
}
