//! Which function calls which, and what all of it comes to when the calls are written out, as ONNX Runtime does.

use std::collections::VecDeque;

use super::{MAX_CALL_DEPTH, MAX_NODES, Refusal, Rule, breaks};

/// Nodes of one function or of the main graph, subgraphs included.
#[derive(Clone, Debug, Default)]
pub(super) struct Body {
    pub(super) nodes: u64,
    /// The functions it calls, once for each call.
    pub(super) calls: Vec<usize>,
}

/// The functions of a model.
#[derive(Debug)]
pub(super) struct Calls {
    names: Vec<String>,
    pub(super) bodies: Vec<Body>,
}

/// What a function comes to when its calls are written out.
#[derive(Clone, Copy, Debug, Default)]
struct WrittenOut {
    nodes: u64,
    depth: usize,
}

impl Calls {
    pub(super) fn new(names: Vec<String>) -> Self {
        Self { bodies: vec![Body::default(); names.len()], names }
    }

    /// Refuses calls that go in a circle, go too deep, or come to too many nodes in `main`.
    pub(super) fn check(&self, main: &Body) -> Result<(), Refusal> {
        let mut written_out = vec![WrittenOut::default(); self.bodies.len()];
        for function in self.innermost_first()? {
            let sum = write_out(&self.bodies[function], &written_out);
            let place = || format!("function `{}`", self.names[function]);
            if sum.depth > MAX_CALL_DEPTH {
                return Err(breaks(Rule::CallDepth, &place(), &format!("from it they go {} deep", sum.depth)));
            }
            written_out[function] = sum;
        }
        let sum = write_out(main, &written_out);
        if sum.nodes > MAX_NODES {
            return Err(breaks(Rule::Nodes, "the model", &format!("with its functions it has {}", sum.nodes)));
        }
        Ok(())
    }

    /// Every function after all that it calls.
    fn innermost_first(&self) -> Result<Vec<usize>, Refusal> {
        let mut callers = vec![Vec::new(); self.bodies.len()];
        let mut open: Vec<usize> = self.bodies.iter().map(|body| body.calls.len()).collect();
        for (caller, body) in self.bodies.iter().enumerate() {
            for call in &body.calls {
                callers[*call].push(caller);
            }
        }
        let mut ready: VecDeque<usize> = (0..open.len()).filter(|function| open[*function] == 0).collect();
        let mut order = Vec::with_capacity(open.len());
        while let Some(function) = ready.pop_front() {
            order.push(function);
            for caller in &callers[function] {
                open[*caller] -= 1;
                if open[*caller] == 0 {
                    ready.push_back(*caller);
                }
            }
        }
        match open.iter().position(|calls| *calls > 0) {
            None => Ok(order),
            Some(function) => {
                let place = format!("function `{}`", self.names[function]);
                Err(breaks(Rule::Cycle, &place, "its calls lead back, or to functions that do"))
            }
        }
    }
}

/// `body` with its calls written out.
fn write_out(body: &Body, functions: &[WrittenOut]) -> WrittenOut {
    let called = body.calls.iter().map(|call| functions[*call]);
    called.fold(WrittenOut { nodes: body.nodes, depth: 1 }, |sum, called| WrittenOut {
        nodes: sum.nodes.saturating_add(called.nodes),
        depth: sum.depth.max(called.depth + 1),
    })
}
