//! The search for an order, by stateright.

use std::cell::Cell;
use std::collections::{BTreeSet, HashMap};

use stateright::semantics::register::{Register, RegisterOp, RegisterRet};
use stateright::semantics::{ConsistencyTester, LinearizabilityTester, SequentialSpec};

use super::reduce::{Act, Rank, Step, Value};

/// How much searching may still be done, in steps copied: each try copies what is left to be put in order. A hundred
/// million take about two seconds.
pub(super) struct Budget(Cell<usize>);

/// The budget is spent: whether there is an order is not known.
#[derive(Debug)]
pub(super) struct Spent;

/// What has to be put in order.
pub(super) struct Question<'a> {
    /// What the register has before.
    pub(super) start: Value,
    pub(super) steps: &'a [Step],
    /// When deletes began that take effect before the end.
    pub(super) deletes: &'a [Rank],
    /// What the register has after, if that matters.
    pub(super) end: Option<Value>,
}

/// The register, which refuses every step once the budget is spent, so that the search ends.
#[derive(Clone)]
struct Counted<'a> {
    register: Register<Value>,
    budget: &'a Budget,
    price: usize,
}

type Tester<'a> = LinearizabilityTester<usize, Counted<'a>>;

impl Budget {
    pub(super) fn new(copies_max: usize) -> Self {
        Self(Cell::new(copies_max))
    }

    fn take(&self, price: usize) -> bool {
        self.0.set(self.0.get().saturating_sub(price));
        !self.is_spent()
    }

    pub(super) fn is_spent(&self) -> bool {
        self.0.get() == 0
    }
}

impl SequentialSpec for Counted<'_> {
    type Op = RegisterOp<Value>;
    type Ret = RegisterRet<Value>;

    fn invoke(&mut self, op: &Self::Op) -> Self::Ret {
        self.register.invoke(op)
    }

    fn is_valid_step(&mut self, op: &Self::Op, ret: &Self::Ret) -> bool {
        self.budget.take(self.price) && self.register.is_valid_step(op, ret)
    }
}

/// Whether there is an order in which all of it happens.
///
/// # Errors
///
/// The budget is spent before the answer is found.
pub(super) fn is_possible(question: &Question<'_>, budget: &Budget) -> Result<bool, Spent> {
    let price = question.steps.len() + question.deletes.len() + 1;
    let mut tester = Tester::new(Counted { register: Register(question.start), budget, price });
    tell(&mut tester, question).expect("a thread has one step at a time");
    if tester.is_consistent() {
        return Ok(true);
    }
    if budget.is_spent() { Err(Spent) } else { Ok(false) }
}

/// Tells the tester all calls and returns in their order. Which client made a call does not matter, as its calls do not
/// overlap: a step has the first thread that is idle, for the fewer threads, the quicker.
fn tell(tester: &mut Tester<'_>, question: &Question<'_>) -> Result<(), String> {
    let delete_thread = |index| question.steps.len() + index;
    let mut moments: Vec<(Rank, bool, usize)> = Vec::new();
    for (index, step) in question.steps.iter().enumerate() {
        moments.extend([(step.from, false, index), (step.to, true, index)]);
    }
    moments.extend(question.deletes.iter().enumerate().map(|(index, &began)| (began, false, delete_thread(index))));
    moments.sort_unstable();

    let mut idle: BTreeSet<usize> = (0..question.steps.len()).collect();
    let mut threads = HashMap::new();
    for (_, is_return, index) in moments {
        let Some(step) = question.steps.get(index) else {
            tester.on_invoke(index, RegisterOp::Write(Value::Absent))?;
            continue;
        };
        let (op, ret) = match step.act {
            Act::Write(value) => (RegisterOp::Write(value), RegisterRet::WriteOk),
            Act::Read(value) => (RegisterOp::Read, RegisterRet::ReadOk(value)),
        };
        if is_return {
            let thread = threads.remove(&index).expect("a step begins before it ends");
            idle.insert(thread);
            tester.on_return(thread, ret)?;
        } else {
            let thread = idle.pop_first().expect("there are as many threads as steps");
            threads.insert(index, thread);
            tester.on_invoke(thread, op)?;
        }
    }
    for index in 0..question.deletes.len() {
        tester.on_return(delete_thread(index), RegisterRet::WriteOk)?;
    }
    if let Some(end) = question.end {
        tester.on_invret(0, RegisterOp::Read, RegisterRet::ReadOk(end))?;
    }
    Ok(())
}
