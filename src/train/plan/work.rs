//! The work of a step by group of ops, and what a card is predicted to need for it.

use serde::Serialize;

use crate::device::{Card, Ledger};

/// Ops that belong together in a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Group {
    /// Products with frozen linear layers.
    BaseLinears,
    /// What adapters add to them.
    Lora,
    /// Scores, softmax and their gradients.
    Attention,
    /// Norms, rotation, SwiGLU, embedding, picking of rows.
    ElementWise,
    /// LM head and cross-entropy.
    Head,
    /// Gradient norm and update.
    Optimizer,
}

impl Group {
    /// All of them, in the order of a table.
    pub const ALL: [Self; 6] =
        [Self::BaseLinears, Self::Lora, Self::Attention, Self::ElementWise, Self::Head, Self::Optimizer];

    /// Its row in a table.
    pub fn name(self) -> &'static str {
        match self {
            Self::BaseLinears => "base linears",
            Self::Lora => "LoRA",
            Self::Attention => "attention",
            Self::ElementWise => "element-wise",
            Self::Head => "head",
            Self::Optimizer => "optimizer",
        }
    }

    /// The group of an op of the ledger.
    fn of(op: &str) -> Self {
        let (family, part) = op.split_once('.').unwrap_or((op, ""));
        match family {
            "lora_matmul" if part.ends_with("lora") || part == "dora_norm" => Self::Lora,
            "lora_matmul" => Self::BaseLinears,
            "attention" => Self::Attention,
            "linear_cross_entropy" => Self::Head,
            "adamw" | "grad_norm" => Self::Optimizer,
            _ => Self::ElementWise,
        }
    }

    /// True where tensor cores do the arithmetic; elsewhere bytes decide.
    fn is_products(self) -> bool {
        matches!(self, Self::BaseLinears | Self::Lora | Self::Attention | Self::Head)
    }
}

/// The work of one op, or of one group.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct WorkOf<K> {
    /// The op or the group.
    pub name: K,
    /// Calls.
    pub calls: u64,
    /// Floating-point operations; a multiply-add counts as two.
    pub flops: u64,
    /// Bytes of the operands, each read or written once per call.
    pub bytes: u64,
    /// Kernel launches on a GPU; 0 on the CPU.
    pub launches: u64,
    /// Predicted seconds on the card that is planned for.
    pub predicted_secs: Option<f64>,
}

/// By op, in the order of their names, and by group.
pub(super) fn of(ledger: &Ledger, card: Option<&Card>) -> (Vec<WorkOf<String>>, Vec<WorkOf<Group>>) {
    let mut ops = Vec::new();
    let empty =
        |name| WorkOf { name, calls: 0, flops: 0, bytes: 0, launches: 0, predicted_secs: card.map(|_| 0.0) };
    let mut groups = Group::ALL.map(empty);
    for (name, calls, work) in ledger.entries() {
        let group = Group::of(name);
        let tensor_flops = if group.is_products() { work.flops } else { 0 };
        let predicted_secs = card.map(|c| c.predicted_secs(tensor_flops, work.bytes, work.launches));
        let sum = &mut groups[group as usize];
        sum.calls += calls;
        sum.flops += work.flops;
        sum.bytes += work.bytes;
        sum.launches += work.launches;
        sum.predicted_secs = sum.predicted_secs.zip(predicted_secs).map(|(a, b)| a + b);
        let name = name.to_owned();
        let (flops, bytes, launches) = (work.flops, work.bytes, work.launches);
        ops.push(WorkOf { name, calls, flops, bytes, launches, predicted_secs });
    }
    (ops, groups.into_iter().filter(|group| group.calls > 0).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Work;

    #[test]
    fn every_op_has_its_group_and_groups_add_up() {
        let mut ledger = Ledger::default();
        for (op, group) in [
            ("lora_matmul.forward", Group::BaseLinears),
            ("lora_matmul.recompute", Group::BaseLinears),
            ("lora_matmul.backward.lora", Group::Lora),
            ("lora_matmul.dora_norm", Group::Lora),
            ("attention.backward", Group::Attention),
            ("norm.apply", Group::ElementWise),
            ("embedding", Group::ElementWise),
            ("linear_cross_entropy", Group::Head),
            ("adamw", Group::Optimizer),
        ] {
            assert_eq!(Group::of(op), group, "{op}");
            ledger.add(op, Work { launches: 2, ..Work::new(1_000_000, 500) });
        }
        let card = Card::find("rtx3080");
        let (ops, groups) = of(&ledger, card);
        assert_eq!((ops.len(), groups.len()), (9, Group::ALL.len()));
        assert_eq!(groups.iter().map(|g| g.flops).sum::<u64>(), ledger.total().flops);
        assert_eq!(groups.iter().map(|g| g.launches).sum::<u64>(), 18);
        let secs = |works: &[f64]| works.iter().sum::<f64>();
        let by_op: Vec<f64> = ops.iter().filter_map(|op| op.predicted_secs).collect();
        let by_group: Vec<f64> = groups.iter().filter_map(|group| group.predicted_secs).collect();
        assert!((secs(&by_op) / secs(&by_group) - 1.0).abs() < 1e-12 && by_op.len() == 9);
        assert!(of(&ledger, None).0.iter().all(|op| op.predicted_secs.is_none()));
    }
}
