//! A file system in memory that knows what a power loss would leave: each file and each directory
//! has what programs see, what is durable, and the changes in between.
//!
//! The rules are those that POSIX promises and no more. `fsync` of a file makes its bytes and size
//! durable, not its name. A name is durable once its directory was synced; so is a new directory's
//! own name in its parent. A rename within a directory happens whole or not; one between two
//! directories is two changes, each durable with its own directory. `sync` and `syncfs` make
//! everything durable.
//!
//! # Limitations
//! A link's target is durable with its name, and so is the mode that a file was made with. Times,
//! owners and attributes are not modelled. A write is kept or lost whole.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use bstr::BString;
use serde::{Deserialize, Serialize};
use sha1::{Digest as _, Sha1};

/// Number of a file, directory, link or special file; [`ROOT`] is the root.
pub type Id = usize;
pub const ROOT: Id = 0;
type Digest = [u8; 20];

/// What kind of thing an [`Id`] is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    File,
    Dir,
    /// A symbolic link, and where it leads.
    Link(BString),
    /// A pipe or another special file: the mode with its type.
    Special(u32),
}

/// A name in a directory.
pub type Place = (Id, BString);

/// One change, or one sync, in the order in which they returned.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Op {
    /// A new thing; without a name where it was made by `O_TMPFILE`.
    Make {
        id: Id,
        at: Option<Place>,
        kind: Kind,
        mode: u32,
    },
    /// A further name.
    Link {
        id: Id,
        at: Place,
    },
    Unlink {
        at: Place,
    },
    Rename {
        from: Place,
        to: Place,
    },
    Exchange {
        one: Place,
        other: Place,
    },
    Write {
        id: Id,
        offset: u64,
        #[serde(with = "hexed")]
        bytes: Vec<u8>,
    },
    Resize {
        id: Id,
        size: u64,
    },
    Mode {
        id: Id,
        mode: u32,
    },
    /// `fsync`, or `fdatasync` where `data_only`.
    Sync {
        id: Id,
        data_only: bool,
    },
    SyncAll,
    /// No change: the program wrote a piece of its answer.
    Answer,
    /// No change: the next command starts.
    Step(usize),
}

/// Which of the changes that no sync has covered a power loss leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Keep {
    /// None.
    Strict,
    /// All: what a kill leaves.
    All,
    /// Names; files are as long and hold what was synced.
    Names,
    /// Names and sizes; what was written and not synced reads as zeros.
    Zeros,
    /// Bytes and modes; no names.
    Data,
    /// Each by a throw of a coin, of this seed.
    Some(u64),
    /// Those before a moment that this seed chooses, in order.
    Until(u64),
}

impl Keep {
    /// The word of a state in what is printed and on the command line.
    pub fn name(self) -> String {
        match self {
            Self::Strict => "strict".to_owned(),
            Self::All => "all".to_owned(),
            Self::Names => "names".to_owned(),
            Self::Zeros => "zeros".to_owned(),
            Self::Data => "data".to_owned(),
            Self::Some(seed) => format!("some:{seed}"),
            Self::Until(seed) => format!("until:{seed}"),
        }
    }

    /// The state of this word.
    pub fn parse(word: &str) -> Option<Self> {
        Some(match word.split_once(':') {
            Some(("some", seed)) => Self::Some(seed.parse().ok()?),
            Some(("until", seed)) => Self::Until(seed.parse().ok()?),
            Some(_) => return None,
            None => {
                let plain = [Self::Strict, Self::All, Self::Names, Self::Zeros, Self::Data];
                plain.into_iter().find(|keep| keep.name() == word)?
            }
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Kept,
    Lost,
    Zeroed,
}

#[derive(Clone, Default)]
struct Content {
    bytes: Rc<Vec<u8>>,
    digest: Cell<Option<Digest>>,
}

impl Content {
    fn digest(&self) -> Digest {
        self.digest.get().unwrap_or_else(|| {
            let digest = Sha1::digest(&*self.bytes).into();
            self.digest.set(Some(digest));
            digest
        })
    }

    fn change(&mut self, change: &Change, fate: Fate) {
        self.digest.set(None);
        let all = Rc::make_mut(&mut self.bytes);
        match change {
            Change::Write { offset, bytes } => {
                let from = usize::try_from(*offset).expect("fits");
                let to = from + bytes.len();
                if all.len() < to {
                    all.resize(to, 0);
                }
                if fate == Fate::Zeroed {
                    all[from..to].fill(0);
                } else {
                    all[from..to].copy_from_slice(bytes);
                }
            }
            Change::Resize(size) => all.resize(usize::try_from(*size).expect("fits"), 0),
        }
    }
}

#[derive(Clone)]
enum Change {
    Write { offset: u64, bytes: Rc<Vec<u8>> },
    Resize(u64),
}

type Names = BTreeMap<BString, Id>;
/// A name, and what it names from then on.
type Renaming = (BString, Option<Id>);

struct Node {
    kind: Kind,
    mode: u32,
    durable_mode: u32,
    pending_mode: Vec<(usize, u32)>,
    bytes: Content,
    durable_bytes: Content,
    pending_bytes: Vec<(usize, Change)>,
    names: Names,
    durable_names: Names,
    pending_names: Vec<(usize, Vec<Renaming>)>,
    /// How many names it has, as programs see it.
    links: usize,
    /// What [`Node::print`] gives as long as nothing is pending.
    print: Cell<Option<u128>>,
}

impl Node {
    fn new(kind: Kind, mode: u32) -> Self {
        Self {
            kind,
            mode,
            durable_mode: mode,
            pending_mode: Vec::new(),
            bytes: Content::default(),
            durable_bytes: Content::default(),
            pending_bytes: Vec::new(),
            names: Names::new(),
            durable_names: Names::new(),
            pending_names: Vec::new(),
            links: 0,
            print: Cell::new(None),
        }
    }

    fn sync(&mut self, data_only: bool) {
        self.print.set(None);
        self.durable_bytes = self.bytes.clone();
        self.pending_bytes.clear();
        self.durable_names = self.names.clone();
        self.pending_names.clear();
        if !data_only {
            self.durable_mode = self.mode;
            self.pending_mode.clear();
        }
    }
}

/// The file system.
pub struct Model {
    nodes: Vec<Node>,
    /// How many changes were applied: the next one's number.
    now: usize,
}

impl Model {
    /// A root and nothing else, durable.
    pub fn new(mode: u32) -> Self {
        Self { nodes: vec![Node::new(Kind::Dir, mode)], now: 0 }
    }

    /// The number that the next new thing gets.
    pub fn next_id(&self) -> Id {
        self.nodes.len()
    }

    /// What stands at a name, as programs see it.
    pub fn at(&self, (dir, name): &Place) -> Option<Id> {
        self.nodes[*dir].names.get(name).copied()
    }

    /// How many names it has, as programs see it.
    pub fn links(&self, id: Id) -> usize {
        self.nodes[id].links
    }

    /// How long a file is, as programs see it.
    pub fn size(&self, id: Id) -> u64 {
        self.nodes[id].bytes.bytes.len() as u64
    }

    /// The mode, as programs see it.
    pub fn mode(&self, id: Id) -> u32 {
        self.nodes[id].mode
    }

    /// Whether any change is not durable.
    pub fn is_settled(&self) -> bool {
        self.nodes.iter().all(Node::is_settled)
    }

    /// Makes one change, or one sync.
    pub fn apply(&mut self, op: &Op) {
        let now = self.now;
        self.now += 1;
        match op {
            Op::Make { id, at, kind, mode } => {
                assert_eq!(*id, self.nodes.len(), "new things are numbered in order");
                self.nodes.push(Node::new(kind.clone(), *mode));
                if let Some((dir, name)) = at {
                    self.names(*dir, now, vec![(name.clone(), Some(*id))]);
                }
            }
            Op::Link { id, at: (dir, name) } => {
                self.names(*dir, now, vec![(name.clone(), Some(*id))]);
            }
            Op::Unlink { at: (dir, name) } => self.names(*dir, now, vec![(name.clone(), None)]),
            Op::Rename { from, to } => {
                let moved = self.at(from).expect("renamed, so it is there");
                // Two names of one file: rename(2) leaves both.
                if self.at(to) != Some(moved) {
                    let (gone, come) = ((from.1.clone(), None), (to.1.clone(), Some(moved)));
                    self.two(now, (from.0, gone), (to.0, come));
                }
            }
            Op::Exchange { one, other } => {
                let (a, b) = (self.at(one).expect("there"), self.at(other).expect("there"));
                let (first, second) = ((one.1.clone(), Some(b)), (other.1.clone(), Some(a)));
                self.two(now, (one.0, first), (other.0, second));
            }
            Op::Write { id, offset, bytes } => {
                let change = Change::Write { offset: *offset, bytes: Rc::new(bytes.clone()) };
                self.bytes(*id, now, change);
            }
            Op::Resize { id, size } => self.bytes(*id, now, Change::Resize(*size)),
            Op::Mode { id, mode } => {
                let node = &mut self.nodes[*id];
                node.mode = *mode;
                node.pending_mode.push((now, *mode));
            }
            Op::Sync { id, data_only } => self.nodes[*id].sync(*data_only),
            Op::SyncAll => self.nodes.iter_mut().for_each(|node| node.sync(false)),
            Op::Answer | Op::Step(_) => {}
        }
    }

    /// Everything is durable: the state before the first recorded change.
    pub fn settle(&mut self) {
        self.nodes.iter_mut().for_each(|node| node.sync(false));
        self.now = 0;
    }

    fn two(&mut self, now: usize, (a, first): (Id, Renaming), (b, second): (Id, Renaming)) {
        if a == b {
            self.names(a, now, vec![first, second]);
        } else {
            // The name that comes is made before the one that goes: its count never drops to 0.
            self.names(b, now, vec![second]);
            self.names(a, now, vec![first]);
        }
    }

    fn names(&mut self, dir: Id, now: usize, changes: Vec<Renaming>) {
        for (name, id) in &changes {
            let names = &mut self.nodes[dir].names;
            let before = match id {
                Some(id) => names.insert(name.clone(), *id),
                None => names.remove(name),
            };
            if let Some(before) = before {
                self.nodes[before].links -= 1;
            }
            if let Some(id) = id {
                self.nodes[*id].links += 1;
            }
        }
        self.nodes[dir].pending_names.push((now, changes));
    }

    fn bytes(&mut self, id: Id, now: usize, change: Change) {
        let node = &mut self.nodes[id];
        node.bytes.change(&change, Fate::Kept);
        node.pending_bytes.push((now, change));
    }

    /// The state that a power loss at this moment leaves.
    pub fn image(&self, keep: Keep) -> Image {
        let mut entries = Vec::new();
        self.walk(keep, |path, id, node, fates| {
            let bytes = node.content(fates).map(|content| content.bytes);
            let (kind, mode) = (node.kind.clone(), node.mode(fates));
            entries.push(Entry { path: path.clone(), id, kind, mode, bytes });
        });
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        Image { entries }
    }

    /// The same for two images that no program could tell apart.
    pub fn digest(&self, keep: Keep) -> u128 {
        let mut sum = 0_u128;
        self.walk(keep, |_, id, node, fates| {
            sum = sum.wrapping_add(node.print(id, fates));
        });
        sum
    }

    fn walk(&self, keep: Keep, mut visit: impl FnMut(&BString, Id, &Node, &Fates)) {
        let fates = self.fates(keep);
        let mut seen = BTreeSet::new();
        let mut todo = vec![(BString::default(), ROOT)];
        while let Some((path, id)) = todo.pop() {
            let node = &self.nodes[id];
            if node.kind == Kind::Dir {
                // One that a rename left under two names: a file system shows one.
                if !seen.insert(id) {
                    continue;
                }
                for (name, child) in node.entries(&fates).iter() {
                    let mut below = path.clone();
                    if !below.is_empty() {
                        below.push(b'/');
                    }
                    below.extend_from_slice(name);
                    todo.push((below, *child));
                }
            }
            visit(&path, id, node, &fates);
        }
    }

    fn fates(&self, keep: Keep) -> Fates {
        let until = match keep {
            Keep::Until(seed) => {
                let mut pending: Vec<usize> = Vec::new();
                for node in &self.nodes {
                    pending.extend(node.pending_bytes.iter().map(|(at, _)| *at));
                    pending.extend(node.pending_names.iter().map(|(at, _)| *at));
                    pending.extend(node.pending_mode.iter().map(|(at, _)| *at));
                }
                pending.sort_unstable();
                pending.dedup();
                let count = pending.len() as u64;
                let chosen = if count == 0 { 0 } else { mix(seed, self.now as u64) % count };
                pending.get(usize::try_from(chosen).expect("an index")).copied().unwrap_or(0)
            }
            _ => 0,
        };
        Fates { keep, until, now: self.now as u64 }
    }
}

struct Fates {
    keep: Keep,
    until: usize,
    now: u64,
}

impl Fates {
    fn coin(&self, seed: u64, at: usize, salt: u64) -> bool {
        mix(seed.wrapping_mul(31).wrapping_add(salt), self.now << 32 | at as u64) & 1 == 1
    }

    fn of_bytes(&self, at: usize) -> Fate {
        let kept = match self.keep {
            Keep::Strict | Keep::Names => false,
            Keep::Zeros => return Fate::Zeroed,
            Keep::All | Keep::Data => true,
            Keep::Some(seed) => self.coin(seed, at, 1),
            Keep::Until(_) => at <= self.until,
        };
        if kept { Fate::Kept } else { Fate::Lost }
    }

    fn of_name(&self, at: usize) -> bool {
        match self.keep {
            Keep::Strict | Keep::Data => false,
            Keep::All | Keep::Names | Keep::Zeros => true,
            Keep::Some(seed) => self.coin(seed, at, 2),
            Keep::Until(_) => at <= self.until,
        }
    }
}

/// A hash of two numbers (`splitmix64`).
fn mix(a: u64, b: u64) -> u64 {
    let mut x = a.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(b);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl Node {
    fn content(&self, fates: &Fates) -> Option<Content> {
        if self.kind != Kind::File {
            return None;
        }
        if self.pending_bytes.iter().all(|(at, _)| fates.of_bytes(*at) == Fate::Kept) {
            return Some(self.bytes.clone());
        }
        let mut content = self.durable_bytes.clone();
        for (at, change) in &self.pending_bytes {
            let fate = fates.of_bytes(*at);
            if fate != Fate::Lost {
                content.change(change, fate);
            }
        }
        Some(content)
    }

    fn mode(&self, fates: &Fates) -> u32 {
        let kept = |(at, _): &&(usize, u32)| fates.of_bytes(*at) != Fate::Lost;
        self.pending_mode.iter().rfind(kept).map_or(self.durable_mode, |(_, mode)| *mode)
    }

    fn is_settled(&self) -> bool {
        self.pending_bytes.is_empty()
            && self.pending_names.is_empty()
            && self.pending_mode.is_empty()
    }

    /// A hash of everything that this node shows.
    fn print(&self, id: Id, fates: &Fates) -> u128 {
        if self.is_settled()
            && let Some(print) = self.print.get()
        {
            return print;
        }
        let mut hash = Sha1::new();
        hash.update(id.to_le_bytes());
        hash.update(self.mode(fates).to_le_bytes());
        if let Some(content) = self.content(fates) {
            hash.update(content.digest());
        }
        for (name, child) in self.entries(fates).iter() {
            hash.update(name.len().to_le_bytes());
            hash.update(name);
            hash.update(child.to_le_bytes());
        }
        let digest: Digest = hash.finalize().into();
        let print = u128::from_le_bytes(digest[..16].try_into().expect("16 of 20 bytes"));
        if self.is_settled() {
            self.print.set(Some(print));
        }
        print
    }

    fn entries(&self, fates: &Fates) -> Cow<'_, Names> {
        if self.pending_names.is_empty() {
            return Cow::Borrowed(&self.names);
        }
        let mut names = self.durable_names.clone();
        for (at, changes) in &self.pending_names {
            if fates.of_name(*at) {
                for (name, id) in changes {
                    match id {
                        Some(id) => names.insert(name.clone(), *id),
                        None => names.remove(name),
                    };
                }
            }
        }
        Cow::Owned(names)
    }
}

/// One thing of an [`Image`].
pub struct Entry {
    /// Relative to the root; empty for the root itself.
    pub path: BString,
    /// Two entries of one id are two names of one file.
    pub id: Id,
    pub kind: Kind,
    pub mode: u32,
    /// Of a file.
    pub bytes: Option<Rc<Vec<u8>>>,
}

/// A whole tree, by path.
pub struct Image {
    pub entries: Vec<Entry>,
}

mod hexed {
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        let mut text = String::with_capacity(bytes.len() * 2);
        for byte in bytes {
            for half in [byte >> 4, byte & 15] {
                text.push(char::from_digit(u32::from(half), 16).expect("a hex digit"));
            }
        }
        to.serialize_str(&text)
    }

    pub(super) fn deserialize<'a, D: Deserializer<'a>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(from)?;
        let digit =
            |c: u8| char::from(c).to_digit(16).ok_or_else(|| serde::de::Error::custom("no hex"));
        text.as_bytes()
            .chunks(2)
            .map(|pair| {
                let value = pair.iter().try_fold(0, |all, c| Ok(all * 16 + digit(*c)?))?;
                Ok(u8::try_from(value).expect("two digits"))
            })
            .collect()
    }
}
