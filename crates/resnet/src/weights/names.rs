//! One spelling of tensor names for all the ways checkpoints spell them.
//!
//! Ours is torchvision's: `conv1.weight`, `layer2.0.downsample.1.bias`, `fc.weight`. Others wrap the
//! network (`DataParallel`: `module.`), nest it in a larger checkpoint (`state_dict`), or name the
//! classifier `linear` and a projection `shortcut`.

/// Keys under which training scripts keep the network's own state.
const NESTS: [&str; 4] = ["state_dict.", "model_state_dict.", "model.", "net."];

/// How deep such keys are followed: `state_dict` and a network kept in an attribute of a larger module.
const MAX_NESTING: usize = 2;

/// What wrappers put in front of every name: `DataParallel`, `torch.compile`.
const WRAPPERS: [&str; 2] = ["module.", "_orig_mod."];

/// Whether a tensor says nothing about the network: batch norm's count of the batches it has seen.
pub(super) fn is_ignored(name: &str) -> bool {
    name.rsplit('.').next() == Some("num_batches_tracked")
}

/// The name the tensor has in the network, or `None` when it belongs to something stored beside the
/// network, like an optimizer. `nest` is what [`nest_of`] found for the whole file.
pub(super) fn canonical(name: &str, nest: &str) -> Option<String> {
    let mut name = name.strip_prefix(nest)?;
    while let Some(inner) = WRAPPERS.iter().find_map(|wrapper| name.strip_prefix(wrapper)) {
        name = inner;
    }
    let spelled = name.split('.').enumerate().map(|(depth, part)| match part {
        "linear" if depth == 0 => "fc",
        "shortcut" => "downsample",
        part => part,
    });
    Some(spelled.collect::<Vec<_>>().join("."))
}

/// The prefix of the tensors that are the network's: empty, or keys like `checkpoint.state_dict.`.
pub(super) fn nest_of(names: &[&str]) -> String {
    let mut nest = String::new();
    for _ in 0..MAX_NESTING {
        let mut candidates = NESTS.iter().map(|key| format!("{nest}{key}"));
        match candidates.find(|deeper| names.iter().any(|name| name.starts_with(deeper))) {
            Some(deeper) => nest = deeper,
            None => break,
        }
    }
    nest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_spellings_become_torchvisions() {
        let cases = [
            ("conv1.weight", "", "conv1.weight"),
            ("module.linear.bias", "", "fc.bias"),
            ("module._orig_mod.fc.bias", "", "fc.bias"),
            ("state_dict.module.layer2.0.shortcut.0.weight", "state_dict.", "layer2.0.downsample.0.weight"),
            ("layer1.0.linear.weight", "", "layer1.0.linear.weight"),
        ];
        for (name, nest, expected) in cases {
            assert_eq!(canonical(name, nest).as_deref(), Some(expected));
        }
        assert_eq!(canonical("optimizer.state.0.momentum_buffer", "state_dict."), None);
    }

    #[test]
    fn the_networks_own_tensors_are_found_in_a_larger_checkpoint() {
        assert_eq!(nest_of(&["conv1.weight", "fc.bias"]), "");
        assert_eq!(nest_of(&["optimizer.state.0.exp_avg", "model.conv1.weight"]), "model.");
        assert_eq!(nest_of(&["state_dict_ema.fc.bias", "state_dict.net.fc.bias"]), "state_dict.net.");
        assert_eq!(nest_of(&[]), "");
    }
}
