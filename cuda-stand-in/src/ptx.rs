//! PTX as the machine runs it: what LLVM writes of it, read once.
//!
//! <https://docs.nvidia.com/cuda/parallel-thread-execution/>

use std::collections::HashMap;

/// A kernel.
pub struct Kernel {
    pub name: String,
    pub instructions: Vec<Instruction>,
    pub registers: usize,
    /// Where each parameter begins, and its bytes.
    pub parameters: Vec<(usize, usize)>,
    pub parameter_bytes: usize,
    /// Shared memory that it declares itself.
    pub shared: usize,
    pub local: usize,
    /// Threads in a block, where it says.
    pub threads: Option<[u32; 3]>,
    /// Whether it has tiles of tensors copied.
    pub copies_tiles: bool,
}

/// An instruction.
pub struct Instruction {
    /// The predicate it hangs on, and whether on its contrary.
    pub guard: Option<(u32, bool)>,
    pub op: Op,
    pub ty: Ty,
    /// Of what is converted or compared.
    pub from: Ty,
    pub to: Vec<Operand>,
    pub of: Vec<Operand>,
    pub text: String,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Operand {
    Register(u32),
    /// A predicate's contrary.
    Not(u32),
    Value(u64),
    Special(Special, usize),
    /// A register, or nothing, and what is added.
    Address(Option<u32>, i64),
    Sink,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Special {
    Thread,
    Threads,
    Block,
    Blocks,
    Lane,
    Warp,
    LanesBelow,
    Clock,
    Zero,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Space {
    Generic,
    Global,
    Shared,
    Local,
    Parameter,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ty {
    Pred,
    B(u32),
    U(u32),
    S(u32),
    F16,
    BF16,
    F16x2,
    BF16x2,
    F32,
    TF32,
    F64,
}

impl Ty {
    pub fn bits(self) -> u32 {
        match self {
            Ty::Pred => 1,
            Ty::B(bits) | Ty::U(bits) | Ty::S(bits) => bits,
            Ty::F16 | Ty::BF16 => 16,
            Ty::F16x2 | Ty::BF16x2 | Ty::F32 | Ty::TF32 => 32,
            Ty::F64 => 64,
        }
    }

    pub fn is_float(self) -> bool {
        matches!(self, Ty::F16 | Ty::BF16 | Ty::F32 | Ty::TF32 | Ty::F64)
    }

    fn read(word: &str) -> Option<Self> {
        Some(match word {
            "pred" => Ty::Pred,
            "f16" => Ty::F16,
            "bf16" => Ty::BF16,
            "f16x2" => Ty::F16x2,
            "bf16x2" => Ty::BF16x2,
            "f32" => Ty::F32,
            "tf32" => Ty::TF32,
            "f64" => Ty::F64,
            _ => {
                let kind = word.get(..1)?;
                let bits = word.get(1..)?.parse().ok()?;
                if !matches!(bits, 8 | 16 | 32 | 64 | 128) {
                    return None;
                }
                match kind {
                    "b" => Ty::B(bits),
                    "u" => Ty::U(bits),
                    "s" => Ty::S(bits),
                    _ => return None,
                }
            }
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Two {
    Add,
    Sub,
    Mul,
    MulHigh,
    MulWide,
    Div,
    Rem,
    Min,
    Max,
    And,
    Or,
    Xor,
    Left,
    Right,
    CopySign,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum One {
    Neg,
    Abs,
    Not,
    Count,
    LeadingZeros,
    Reverse,
    Root,
    InverseRoot,
    Inverse,
    Exp2,
    Log2,
    Sin,
    Cos,
    Tanh,
    /// The place of the highest bit that is set.
    HighestBit,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Compare {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    Numbers,
    NotNumbers,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Round {
    Near,
    Zero,
    Up,
    Down,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Shuffle {
    Index,
    Up,
    Down,
    Xor,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Vote {
    All,
    Any,
    Same,
    Ballot,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Which {
    A,
    B,
    C,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    Nothing,
    Move,
    Load {
        space: Space,
        coherent: bool,
    },
    Store {
        space: Space,
    },
    /// An address of a space to a generic one.
    ToGeneric(Space),
    FromGeneric(Space),
    IsIn(Space),
    /// With or unless it has less than nothing.
    Convert {
        round: Round,
        whole: bool,
        saturate: bool,
        relu: bool,
    },
    Unary(One),
    Binary {
        two: Two,
        nan: bool,
        saturate: bool,
    },
    /// Of integers, the low half, the high half, or all of it.
    MulAdd(Two, bool),
    /// Of floats of 32 bits, not to the nearest.
    MulAddTo(Round),
    Extract,
    Insert,
    Permute,
    Logic(u8),
    Funnel {
        left: bool,
        wraps: bool,
    },
    Set {
        compare: Compare,
        unordered: bool,
        with: Option<Two>,
    },
    Select,
    Branch(usize),
    /// To one of these, by number.
    BranchTo(Vec<usize>),
    Exit,
    Trap,
    Barrier,
    BarrierOfWarp,
    Atomic {
        space: Space,
        what: Atomic,
        returns: bool,
    },
    Shuffle(Shuffle),
    Vote(Vote),
    Active,
    Elect,
    Reduce(Two),
    Matrices {
        m: usize,
        n: usize,
        k: usize,
        types: [Ty; 4],
    },
    LoadMatrix {
        count: usize,
        across: bool,
    },
    StoreMatrix {
        count: usize,
        across: bool,
    },
    LoadTile {
        which: Which,
        m: usize,
        n: usize,
        k: usize,
        rows: bool,
        space: Space,
    },
    StoreTile {
        m: usize,
        n: usize,
        rows: bool,
        space: Space,
    },
    MulTiles {
        m: usize,
        n: usize,
        k: usize,
        types: [Ty; 4],
    },
    Copy,
    /// A barrier in shared memory: made for so many, reached, told of bytes that will come, asked.
    Await,
    Arrive,
    Expect,
    HasPassed {
        by_parity: bool,
    },
    /// A tile of a tensor into shared memory.
    Tile {
        rank: usize,
    },
    PutTile {
        rank: usize,
    },
    /// A product of a group of four warps, each of which has 16 rows of it, from shared memory; `A` may be
    /// in registers. Done at once: nothing is waited for.
    Group {
        n: usize,
        types: [Ty; 3],
    },
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Atomic {
    Add,
    Min,
    Max,
    Exchange,
    CompareExchange,
    And,
    Or,
    Xor,
}

impl Op {
    /// Whether lanes of a warp do it together.
    pub fn is_of_warp(&self) -> bool {
        matches!(
            self,
            Op::BarrierOfWarp
                | Op::Shuffle(_)
                | Op::Vote(_)
                | Op::Active
                | Op::Elect
                | Op::Reduce(_)
                | Op::Matrices { .. }
                | Op::LoadMatrix { .. }
                | Op::StoreMatrix { .. }
                | Op::LoadTile { .. }
                | Op::StoreTile { .. }
                | Op::MulTiles { .. }
                | Op::Group { .. }
        )
    }
}

/// All kernels of a module, or why it can't be run.
pub fn read(text: &str) -> Result<Vec<Kernel>, String> {
    let text = without_comments(text);
    let mut module = Module::default();
    let mut kernels = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        if rest.starts_with(".version")
            || rest.starts_with(".target")
            || rest.starts_with(".address_size")
            || rest.starts_with(".file")
        {
            rest = rest.split_once('\n').map_or("", |(_, rest)| rest);
        } else if let Some(at) = [".entry", ".func"]
            .iter()
            .filter_map(|word| rest.find(word))
            .min()
            .filter(|at| !rest[..*at].contains([';', '{']))
        {
            let is_entry = rest[at..].starts_with(".entry");
            let open = rest.find('{');
            let end = rest.find(';');
            if let Some(end) = end.filter(|end| open.is_none_or(|open| *end < open)) {
                rest = &rest[end + 1..];
            } else {
                let open = open.ok_or("a function without a body")?;
                let close = matching(&rest[open..]).ok_or("a body without an end")? + open;
                if is_entry {
                    kernels.push(module.kernel(&rest[at + 6..open], &rest[open + 1..close])?);
                }
                // What is inlined is there as well; a call would be an error.
                rest = &rest[close + 1..];
            }
        } else {
            let (statement, after) = rest.split_once(';').ok_or_else(|| format!("what is {rest:?}?"))?;
            module.declare(statement.trim())?;
            rest = after;
        }
        rest = rest.trim_start();
    }
    for kernel in &mut kernels {
        kernel.shared = module.shared;
    }
    Ok(kernels)
}

/// The kernels' names alone.
pub fn names(text: &str) -> Result<Vec<Kernel>, String> {
    let mut kernels = Vec::new();
    for part in text.split(".entry").skip(1) {
        let name = part.split('(').next().unwrap_or_default().trim().to_owned();
        kernels.push(Kernel {
            name,
            instructions: Vec::new(),
            registers: 0,
            parameters: Vec::new(),
            parameter_bytes: 0,
            shared: 0,
            local: 0,
            threads: None,
            copies_tiles: text.contains("cp.async.bulk.tensor"),
        });
    }
    Ok(kernels)
}

/// Where shared and local memory begin among generic addresses.
pub const SHARED: u64 = 1 << 60;
pub const LOCAL: u64 = 2 << 60;
pub const PARAMETERS: u64 = 3 << 60;

#[derive(Default)]
struct Module {
    symbols: HashMap<String, u64>,
    shared: usize,
    /// Whether memory is shared whose size the start says.
    has_pool: bool,
}

impl Module {
    /// Of shared memory, `.shared .align 16 .b8 name[1024]`.
    fn declare(&mut self, statement: &str) -> Result<(), String> {
        if !statement.contains(".shared") {
            return Err(format!("a declaration: {statement}"));
        }
        let is_extern = statement.contains(".extern");
        let (name, bytes, align) = declared(statement)?;
        // One or the other: nothing says which comes first.
        if (is_extern && self.shared > 0) || (!is_extern && self.has_pool) {
            return Err("memory that is shared by declaration and by the start".into());
        }
        if is_extern {
            self.has_pool = true;
            self.symbols.insert(name, 0);
        } else {
            self.shared = self.shared.next_multiple_of(align);
            self.symbols.insert(name, self.shared as u64);
            self.shared += bytes;
        }
        Ok(())
    }

    fn kernel(&mut self, head: &str, body: &str) -> Result<Kernel, String> {
        let (name, rest) = head.split_once('(').ok_or("an entry without parameters")?;
        let (list, rest) = rest.split_once(')').ok_or("parameters without an end")?;
        let mut reader = Reader {
            registers: HashMap::new(),
            symbols: self.symbols.clone(),
            labels: HashMap::new(),
            scope: String::new(),
            scopes: 0,
            local: 0,
            instructions: Vec::new(),
            jumps: Vec::new(),
            tables: HashMap::new(),
            choices: Vec::new(),
            last_label: String::new(),
        };
        let mut parameters = Vec::new();
        let mut at = 0usize;
        for one in list.split(',').map(str::trim).filter(|one| !one.is_empty()) {
            // An alignment behind `.ptr` is of what is pointed at.
            let (name, bytes, align) = declared(&without_pointer(one))?;
            at = at.next_multiple_of(align);
            reader.symbols.insert(name, at as u64);
            parameters.push((at, bytes));
            at += bytes;
        }
        let threads = rest.split_once(".reqntid").map(|(_, rest)| {
            let mut sides = [1; 3];
            let numbers = rest.split(|c: char| !c.is_ascii_digit()).filter(|word| !word.is_empty());
            for (side, word) in sides.iter_mut().zip(numbers.take(3)) {
                *side = word.parse().unwrap_or(1);
            }
            sides
        });
        reader.body(body)?;
        for (place, label) in std::mem::take(&mut reader.jumps) {
            // Of its own block, or of the body.
            let outer = label.rsplit('.').next().unwrap_or_default();
            let target = reader.labels.get(&label).or_else(|| reader.labels.get(outer));
            let target = *target.ok_or_else(|| format!("no label {label}"))?;
            reader.instructions[place].op = Op::Branch(target);
        }
        for (place, table) in std::mem::take(&mut reader.choices) {
            let labels = reader.tables.get(&table).ok_or_else(|| format!("no list {table}"))?;
            let targets = labels.iter().map(|label| reader.labels.get(label).copied());
            let targets = targets.collect::<Option<_>>().ok_or_else(|| format!("a label of {table}"))?;
            reader.instructions[place].op = Op::BranchTo(targets);
        }
        Ok(Kernel {
            name: name.trim().to_owned(),
            registers: reader.registers.len(),
            instructions: reader.instructions,
            parameters,
            parameter_bytes: at,
            shared: 0,
            local: reader.local,
            threads,
            copies_tiles: false,
        })
    }
}

/// `.param .u64 .ptr .global .align 1 name`: without what is said of the pointer.
fn without_pointer(one: &str) -> String {
    let Some((before, after)) = one.split_once(".ptr") else {
        return one.to_owned();
    };
    let name = after.split_whitespace().last().unwrap_or_default();
    format!("{before} {name}")
}

/// The name, bytes and alignment of `.shared .align 16 .b8 name[1024]`.
fn declared(statement: &str) -> Result<(String, usize, usize), String> {
    let words: Vec<&str> = statement.split_whitespace().collect();
    let mut align = None;
    let mut element = 1;
    for (place, word) in words.iter().enumerate() {
        if *word == ".align" {
            align = words.get(place + 1).and_then(|word| word.parse().ok());
        } else if let Some(ty) = word.strip_prefix('.').and_then(Ty::read) {
            element = ty.bits() as usize / 8;
        }
    }
    let last = *words.last().ok_or("an empty declaration")?;
    let (name, count) = match last.split_once('[') {
        Some((name, count)) => (name, count.trim_end_matches(']').parse().unwrap_or(0)),
        None => (last, 1),
    };
    Ok((name.to_owned(), element * count, align.unwrap_or(element)))
}

struct Reader {
    registers: HashMap<String, u32>,
    symbols: HashMap<String, u64>,
    labels: HashMap<String, usize>,
    /// Of registers that a block within the body declares.
    scope: String,
    scopes: usize,
    local: usize,
    instructions: Vec<Instruction>,
    jumps: Vec<(usize, String)>,
    /// Labels of lists of labels, and where one of a list is jumped to.
    tables: HashMap<String, Vec<String>>,
    choices: Vec<(usize, String)>,
    last_label: String,
}

impl Reader {
    fn body(&mut self, body: &str) -> Result<(), String> {
        let mut rest = body.trim_start();
        let mut scopes: Vec<String> = Vec::new();
        while !rest.is_empty() {
            if let Some(after) = rest.strip_prefix('{') {
                self.scopes += 1;
                scopes.push(std::mem::replace(&mut self.scope, format!("{}.", self.scopes)));
                rest = after.trim_start();
                continue;
            }
            if let Some(after) = rest.strip_prefix('}') {
                self.scope = scopes.pop().unwrap_or_default();
                rest = after.trim_start();
                continue;
            }
            if rest.starts_with(".loc\t")
                || rest.starts_with(".loc ")
                || rest.starts_with(".pragma")
                || rest.starts_with(".section")
            {
                rest = rest.split_once('\n').map_or("", |(_, rest)| rest).trim_start();
                continue;
            }
            // A label: a name and a colon, before anything else.
            let word = rest.find(|c: char| !(c.is_alphanumeric() || "_$".contains(c))).unwrap_or(rest.len());
            if word > 0 && rest[word..].starts_with(':') && !rest[word..].starts_with("::") {
                self.last_label = format!("{}{}", self.scope, &rest[..word]);
                self.labels.insert(self.last_label.clone(), self.instructions.len());
                rest = rest[word + 1..].trim_start();
                continue;
            }
            let (statement, after) = rest.split_once(';').ok_or_else(|| format!("no end: {rest:?}"))?;
            self.statement(statement.trim())?;
            rest = after.trim_start();
        }
        self.instructions.push(instruction(Op::Exit, "the end"));
        Ok(())
    }

    fn statement(&mut self, text: &str) -> Result<(), String> {
        let clean = text.split_whitespace().collect::<Vec<_>>().join(" ");
        if let Some(list) = clean.strip_prefix(".reg ") {
            let (_, names) = list.split_once(' ').ok_or("registers without names")?;
            for name in names.split(',').map(str::trim) {
                match name.split_once('<') {
                    Some((stem, count)) => {
                        let count: usize = count.trim_end_matches('>').parse().map_err(|_| clean.clone())?;
                        for number in 0..count {
                            let next = self.registers.len() as u32;
                            self.registers.insert(format!("{}{stem}{number}", self.scope), next);
                        }
                    }
                    None => {
                        let next = self.registers.len() as u32;
                        self.registers.insert(format!("{}{name}", self.scope), next);
                    }
                }
            }
            return Ok(());
        }
        if clean.starts_with(".local") {
            let (name, bytes, align) = declared(&clean)?;
            self.local = self.local.next_multiple_of(align);
            self.symbols.insert(name, self.local as u64);
            self.local += bytes;
            return Ok(());
        }
        if let Some(list) = clean.strip_prefix(".branchtargets") {
            let labels = list.split(',').map(|label| label.trim().to_owned()).collect();
            self.tables.insert(self.last_label.clone(), labels);
            return Ok(());
        }
        if clean.starts_with('.') {
            return Err(format!("a directive: {clean}"));
        }
        let mut rest = clean.as_str();
        let mut guard = None;
        if let Some(after) = rest.strip_prefix('@') {
            let (name, after) = after.split_once(' ').ok_or("a guard alone")?;
            let is_not = name.starts_with('!');
            guard = Some((self.register(name.trim_start_matches('!'))?, is_not));
            rest = after;
        }
        let (word, operands) = rest.split_once(' ').unwrap_or((rest, ""));
        let operands = self.operands(operands).map_err(|why| format!("{clean}: {why}"))?;
        let mut made = self.instruction(word, operands).map_err(|why| format!("{clean}: {why}"))?;
        made.guard = guard;
        made.text = clean;
        self.instructions.push(made);
        Ok(())
    }

    fn register(&self, name: &str) -> Result<u32, String> {
        self.registers
            .get(&format!("{}{name}", self.scope))
            .or_else(|| self.registers.get(name))
            .copied()
            .ok_or_else(|| format!("no register {name}"))
    }

    /// Groups of operands, each one or what braces hold.
    fn operands(&mut self, text: &str) -> Result<Vec<Vec<Operand>>, String> {
        let mut groups = Vec::new();
        let mut depth = 0;
        let mut begin = 0;
        for (place, letter) in text.char_indices().chain([(text.len(), ',')]) {
            match letter {
                '{' | '[' | '(' => depth += 1,
                '}' | ']' | ')' => depth -= 1,
                ',' if depth == 0 => {
                    let one = text[begin..place].trim();
                    if !one.is_empty() {
                        groups.push(self.group(one)?);
                    }
                    begin = place + 1;
                }
                _ => {}
            }
        }
        Ok(groups)
    }

    fn group(&mut self, text: &str) -> Result<Vec<Operand>, String> {
        if let Some(inside) = text.strip_prefix('{') {
            let inside = inside.trim_end_matches('}');
            return inside.split(',').map(|one| self.operand(one.trim())).collect();
        }
        // A tensor's map, and a place in it: `[%rd1, {%r1, %r2}]`.
        if let Some((map, place)) = text.strip_prefix('[').and_then(|inside| inside.split_once(',')) {
            let mut operands = vec![self.operand(&format!("[{map}]"))?];
            operands.extend(self.group(place.trim_end_matches(']').trim())?);
            return Ok(operands);
        }
        if let Some((one, other)) = text.split_once('|') {
            return Ok(vec![self.operand(one.trim())?, self.operand(other.trim())?]);
        }
        Ok(vec![self.operand(text)?])
    }

    fn operand(&mut self, text: &str) -> Result<Operand, String> {
        if let Some(inside) = text.strip_prefix('[') {
            let inside = inside.trim_end_matches(']').trim();
            let (base, offset) = match inside.rfind('+') {
                Some(at) => (inside[..at].trim(), inside[at + 1..].trim().parse().map_err(|_| inside)?),
                None => (inside, 0i64),
            };
            return Ok(match self.operand(base)? {
                Operand::Register(register) => Operand::Address(Some(register), offset),
                Operand::Value(value) => Operand::Address(None, value as i64 + offset),
                _ => return Err(format!("an address of {base}")),
            });
        }
        if text == "_" {
            return Ok(Operand::Sink);
        }
        if let Some(name) = text.strip_prefix('!') {
            return Ok(Operand::Not(self.register(name)?));
        }
        if let Ok(register) = self.register(text) {
            return Ok(Operand::Register(register));
        }
        if let Some(special) = text.strip_prefix('%') {
            let (name, side) = special.split_once('.').unwrap_or((special, "x"));
            let side = ["x", "y", "z"].iter().position(|one| *one == side).unwrap_or(0);
            let special = match name {
                "tid" => Special::Thread,
                "ntid" => Special::Threads,
                "ctaid" => Special::Block,
                "nctaid" => Special::Blocks,
                "laneid" => Special::Lane,
                "warpid" => Special::Warp,
                "lanemask_lt" => Special::LanesBelow,
                "clock" | "clock64" | "globaltimer" => Special::Clock,
                "cluster_ctarank" | "cluster_ctaid" => Special::Zero,
                _ => return Err(format!("special register {text}")),
            };
            return Ok(Operand::Special(special, side));
        }
        if let Some(digits) = text.strip_prefix("0f").or_else(|| text.strip_prefix("0F")) {
            return u32::from_str_radix(digits, 16)
                .map(|bits| Operand::Value(u64::from(bits)))
                .map_err(|_| text.to_owned());
        }
        if let Some(digits) = text.strip_prefix("0d").or_else(|| text.strip_prefix("0D")) {
            return u64::from_str_radix(digits, 16).map(Operand::Value).map_err(|_| text.to_owned());
        }
        let (sign, digits) = match text.strip_prefix('-') {
            Some(digits) => (-1i128, digits),
            None => (1, text),
        };
        let digits = digits.trim_end_matches('U');
        let number = match digits.strip_prefix("0x") {
            Some(digits) => i128::from_str_radix(digits, 16).ok(),
            None => digits.parse::<i128>().ok(),
        };
        if let Some(number) = number {
            return Ok(Operand::Value((sign * number) as u64));
        }
        if text == "true" || text == "false" {
            return Ok(Operand::Value(u64::from(text == "true")));
        }
        if let Some(place) = self.symbols.get(text) {
            return Ok(Operand::Value(*place));
        }
        // A label, which jumps look up.
        self.jumps.push((self.instructions.len(), format!("{}{text}", self.scope)));
        Ok(Operand::Sink)
    }

    fn instruction(&mut self, word: &str, mut groups: Vec<Vec<Operand>>) -> Result<Instruction, String> {
        // Names within a name, `.shared::cta`, are one part.
        let parts: Vec<&str> = word.split('.').collect();
        let name = parts[0];
        let has = |part: &str| parts[1..].contains(&part);
        const OTHERS: [&str; 21] = [
            "f32x2", "s16x2", "u16x2", "e4m3", "e5m2", "e4m3x2", "e5m2x2", "b1", "s4", "u4", "b128", "xorsign", "cc",
            "shiftamt", "f4e", "b4e", "rc8", "rc16", "ecl", "ecr", "reduce",
        ];
        if parts[1..].iter().any(|part| OTHERS.contains(part)) {
            return Err("not known".into());
        }
        let types: Vec<Ty> = parts[1..].iter().filter_map(|part| Ty::read(part)).collect();
        let ty = types.first().copied().unwrap_or(Ty::B(32));
        let last = types.last().copied().unwrap_or(Ty::B(32));
        let space = if has("global") {
            Space::Global
        } else if parts[1..].iter().any(|part| part.starts_with("shared")) {
            Space::Shared
        } else if has("local") {
            Space::Local
        } else if parts[1..].iter().any(|part| part.starts_with("param")) {
            Space::Parameter
        } else {
            Space::Generic
        };
        let mut made = instruction(Op::Nothing, word);
        made.ty = ty;
        made.from = last;
        let is_label = |groups: &Vec<Vec<Operand>>| groups.last() == Some(&vec![Operand::Sink]);
        let round = if has("rz") || has("rzi") {
            Round::Zero
        } else if has("rp") || has("rpi") {
            Round::Up
        } else if has("rm") || has("rmi") {
            Round::Down
        } else {
            Round::Near
        };
        let binary = |two| Op::Binary { two, nan: has("NaN"), saturate: has("sat") };
        // How many groups are written: the first, unless said otherwise.
        let mut written = 1;
        made.op = match name {
            "mov" => Op::Move,
            "ld" | "ldu" => Op::Load { space, coherent: !has("nc") },
            "st" => {
                written = 0;
                Op::Store { space }
            }
            "cvta" if has("to") => Op::FromGeneric(space),
            "cvta" => Op::ToGeneric(space),
            "isspacep" => Op::IsIn(space),
            "cvt" => Op::Convert {
                round,
                whole: ["rni", "rzi", "rmi", "rpi"].iter().any(|part| has(part)),
                saturate: has("sat"),
                relu: has("relu"),
            },
            "add" | "sub" | "mul" | "div" | "sqrt" | "rcp" if ty.is_float() && round != Round::Near => {
                return Err("not known".into());
            }
            "add" => binary(Two::Add),
            "sub" => binary(Two::Sub),
            "mul" if has("wide") => binary(Two::MulWide),
            "mul" if has("hi") => binary(Two::MulHigh),
            "mul" => binary(Two::Mul),
            "div" => binary(Two::Div),
            "rem" => binary(Two::Rem),
            "min" => binary(Two::Min),
            "max" => binary(Two::Max),
            "and" => binary(Two::And),
            "or" => binary(Two::Or),
            "xor" => binary(Two::Xor),
            "shl" => binary(Two::Left),
            "shr" => binary(Two::Right),
            "copysign" => binary(Two::CopySign),
            "mad" if has("wide") => Op::MulAdd(Two::MulWide, false),
            "mad" if has("hi") => Op::MulAdd(Two::MulHigh, false),
            "fma" if has("sat") => return Err("not known".into()),
            "fma" if round != Round::Near && ty == Ty::F32 => Op::MulAddTo(round),
            "mad" | "fma" => Op::MulAdd(Two::Mul, has("relu")),
            "neg" => Op::Unary(One::Neg),
            "abs" => Op::Unary(One::Abs),
            "not" => Op::Unary(One::Not),
            "cnot" => return Err("not known".into()),
            "popc" => Op::Unary(One::Count),
            "clz" => Op::Unary(One::LeadingZeros),
            "brev" => Op::Unary(One::Reverse),
            "bfind" => Op::Unary(One::HighestBit),
            "sqrt" => Op::Unary(One::Root),
            "rsqrt" => Op::Unary(One::InverseRoot),
            "rcp" => Op::Unary(One::Inverse),
            "ex2" => Op::Unary(One::Exp2),
            "lg2" => Op::Unary(One::Log2),
            "sin" => Op::Unary(One::Sin),
            "cos" => Op::Unary(One::Cos),
            "tanh" => Op::Unary(One::Tanh),
            "bfe" => Op::Extract,
            "bfi" => Op::Insert,
            "prmt" => Op::Permute,
            "lop3" => match groups.pop().as_deref() {
                Some([Operand::Value(table)]) => Op::Logic(*table as u8),
                _ => return Err("a table".into()),
            },
            "shf" => Op::Funnel { left: has("l"), wraps: has("wrap") },
            "setp" if matches!(last, Ty::F16x2 | Ty::BF16x2) || (written_twice(&groups) && parts.len() > 3) => {
                return Err("not known".into());
            }
            "setp" | "set" => {
                if name == "set" && types.len() == 2 && ty != Ty::U(32) {
                    return Err("not known".into());
                }
                if name == "set" {
                    return Err("not known".into());
                }
                let word = parts[1];
                let of_two = ["and", "or", "xor"].iter().position(|part| has(part));
                let with = of_two.map(|place| [Two::And, Two::Or, Two::Xor][place]);
                let (compare, unordered) = match word {
                    "eq" => (Compare::Eq, false),
                    "ne" => (Compare::Ne, false),
                    "lt" | "lo" => (Compare::Lt, false),
                    "le" | "ls" => (Compare::Le, false),
                    "gt" | "hi" => (Compare::Gt, false),
                    "ge" | "hs" => (Compare::Ge, false),
                    "equ" => (Compare::Eq, true),
                    "neu" => (Compare::Ne, true),
                    "ltu" => (Compare::Lt, true),
                    "leu" => (Compare::Le, true),
                    "gtu" => (Compare::Gt, true),
                    "geu" => (Compare::Ge, true),
                    "num" => (Compare::Numbers, false),
                    "nan" => (Compare::NotNumbers, false),
                    _ => return Err("a comparison".into()),
                };
                Op::Set { compare, unordered, with }
            }
            "selp" => Op::Select,
            "bra" => {
                if !is_label(&groups) {
                    return Err("no label".into());
                }
                groups.clear();
                written = 0;
                Op::Branch(usize::MAX)
            }
            "brx" => {
                // The list's label was taken for one that is jumped to.
                let (place, table) = self.jumps.pop().ok_or("no list")?;
                self.choices.push((place, table));
                groups.pop();
                written = 0;
                Op::BranchTo(Vec::new())
            }
            "ret" | "exit" => {
                written = 0;
                Op::Exit
            }
            "trap" => {
                written = 0;
                Op::Trap
            }
            "bar" | "barrier" if has("warp") => {
                written = 0;
                Op::BarrierOfWarp
            }
            "bar" | "barrier" if has("sync") && !has("cluster") && groups.len() <= 1 => {
                written = 0;
                Op::Barrier
            }
            "membar" | "fence" | "prefetch" | "prefetchu" | "nanosleep" | "griddepcontrol" | "setmaxnreg"
            | "discard" | "applypriority" => {
                written = 0;
                Op::Nothing
            }
            "createpolicy" => {
                groups.truncate(1);
                groups.push(vec![Operand::Value(0)]);
                Op::Move
            }
            "cp" if has("async") && !has("bulk") => {
                written = 0;
                if has("commit_group") || has("wait_group") || has("wait_all") {
                    groups.clear();
                    Op::Nothing
                } else if space == Space::Global && parts.iter().any(|part| part.starts_with("shared")) {
                    Op::Copy
                } else {
                    return Err("not known".into());
                }
            }
            "cp" if has("bulk")
                && has("tensor")
                && has("tile")
                && space == Space::Global
                && parts.iter().any(|part| part.starts_with("mbarrier")) =>
            {
                written = 0;
                let rank = parts.iter().find_map(|part| part.strip_suffix('d')?.parse().ok()).ok_or("no rank")?;
                // An address in a cluster of one block is the block's.
                Op::Tile { rank }
            }
            "cp" if has("bulk") && (has("commit_group") || has("wait_group")) => {
                written = 0;
                groups.clear();
                Op::Nothing
            }
            "cp" if has("bulk") && has("tensor") && has("tile") && has("bulk_group") => {
                written = 0;
                let rank = parts.iter().find_map(|part| part.strip_suffix('d')?.parse().ok()).ok_or("no rank")?;
                Op::PutTile { rank }
            }
            "wgmma" if has("mma_async") => {
                let (m, n, _) = sizes(&parts).ok_or("no sizes")?;
                let types: [Ty; 3] = types.as_slice().try_into().map_err(|_| "types of eight bits")?;
                if m != 64 || has("sp") || !types[0].is_float() {
                    return Err("not known".into());
                }
                Op::Group { n, types }
            }
            "wgmma" => {
                written = 0;
                groups.clear();
                Op::Nothing
            }
            "mbarrier" if has("init") => {
                written = 0;
                Op::Await
            }
            "mbarrier" if has("inval") => {
                written = 0;
                Op::Nothing
            }
            "mbarrier" if has("expect_tx") && !has("arrive") => {
                written = 0;
                Op::Expect
            }
            "mbarrier" if has("arrive") && !has("expect_tx") => Op::Arrive,
            "mbarrier" if has("try_wait") || has("test_wait") => Op::HasPassed { by_parity: has("parity") },
            "atom" | "red" if !has("async") => {
                let what = if has("add") {
                    Atomic::Add
                } else if has("min") {
                    Atomic::Min
                } else if has("max") {
                    Atomic::Max
                } else if has("exch") {
                    Atomic::Exchange
                } else if has("cas") {
                    Atomic::CompareExchange
                } else if has("and") {
                    Atomic::And
                } else if has("or") {
                    Atomic::Or
                } else if has("xor") {
                    Atomic::Xor
                } else {
                    return Err("not known".into());
                };
                written = usize::from(name == "atom");
                Op::Atomic { space, what, returns: name == "atom" }
            }
            "shfl" => Op::Shuffle(if has("idx") {
                Shuffle::Index
            } else if has("up") {
                Shuffle::Up
            } else if has("down") {
                Shuffle::Down
            } else {
                Shuffle::Xor
            }),
            "vote" => Op::Vote(if has("ballot") {
                Vote::Ballot
            } else if has("all") {
                Vote::All
            } else if has("any") {
                Vote::Any
            } else {
                Vote::Same
            }),
            "activemask" => Op::Active,
            "elect" => Op::Elect,
            "redux" => Op::Reduce(if has("add") {
                Two::Add
            } else if has("min") {
                Two::Min
            } else if has("max") {
                Two::Max
            } else if has("and") {
                Two::And
            } else if has("or") {
                Two::Or
            } else {
                Two::Xor
            }),
            "mma" => {
                let (m, n, k) = sizes(&parts).ok_or("no sizes")?;
                let types: [Ty; 4] = types.as_slice().try_into().map_err(|_| "no four types")?;
                if !types.iter().all(|ty| ty.is_float())
                    || parts.iter().any(|part| part.starts_with("sp") || *part == "block_scale")
                    || !matches!((m, n, k), (16, 8, 16 | 8 | 4))
                {
                    return Err("not known".into());
                }
                Op::Matrices { m, n, k, types }
            }
            "ldmatrix" | "stmatrix" => {
                if !has("m8n8") || !has("b16") {
                    return Err("not known".into());
                }
                let count = if has("x4") {
                    4
                } else if has("x2") {
                    2
                } else {
                    1
                };
                if name == "ldmatrix" {
                    Op::LoadMatrix { count, across: has("trans") }
                } else {
                    written = 0;
                    Op::StoreMatrix { count, across: has("trans") }
                }
            }
            "wmma" => {
                let (m, n, k) = sizes(&parts).ok_or("no sizes")?;
                let rows = has("row");
                if has("load") {
                    let which = if has("a") {
                        Which::A
                    } else if has("b") {
                        Which::B
                    } else {
                        Which::C
                    };
                    Op::LoadTile { which, m, n, k, rows, space }
                } else if has("store") {
                    written = 0;
                    Op::StoreTile { m, n, rows, space }
                } else {
                    let types = match types.as_slice() {
                        [d, a, b, c] => [*d, *a, *b, *c],
                        // Of f16, the types of A and B are not said.
                        [d, c] => [*d, Ty::F16, Ty::F16, *c],
                        _ => return Err("no types".into()),
                    };
                    Op::MulTiles { m, n, k, types }
                }
            }
            _ => return Err("not known".into()),
        };
        if groups.len() < written {
            return Err("too few operands".into());
        }
        made.of = groups.split_off(written).into_iter().flatten().collect();
        // Parts of products of matrices are told apart by how many each has.
        made.to = groups.into_iter().flatten().collect();
        Ok(made)
    }
}

fn written_twice(groups: &[Vec<Operand>]) -> bool {
    groups.first().is_some_and(|first| first.len() == 2)
}

fn sizes(parts: &[&str]) -> Option<(usize, usize, usize)> {
    parts.iter().find_map(|part| {
        let (m, rest) = part.strip_prefix('m')?.split_once('n')?;
        let (n, k) = rest.split_once('k')?;
        Some((m.parse().ok()?, n.parse().ok()?, k.parse().ok()?))
    })
}

fn instruction(op: Op, text: &str) -> Instruction {
    Instruction {
        guard: None,
        op,
        ty: Ty::B(32),
        from: Ty::B(32),
        to: Vec::new(),
        of: Vec::new(),
        text: text.to_owned(),
    }
}

fn without_comments(text: &str) -> String {
    text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// Where the brace that the text begins with is closed.
fn matching(text: &str) -> Option<usize> {
    let mut depth = 0;
    for (place, letter) in text.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(place);
        }
    }
    None
}
