//! SQLite's b-trees, as far as a comparison needs them: the pages of a tree, the cells of a page, the payload of a cell.
//!
//! Everything read is checked before it is believed, and every walk is bounded by the size of the database: a damaged
//! image is an error, never a wrong answer that takes for ever.

use crate::error::{Error, ErrorKind, Result};

/// Deeper than any tree that SQLite makes.
const DEPTH_MAX: usize = 20;
/// What is at least left of a page when its reserved bytes are taken off.
const USABLE_BYTES_MIN: usize = 480;
/// Bytes of the database's header, before the first page's b-tree header.
const HEADER_BYTES: usize = 100;

/// Where pages come from.
pub trait Pages {
    /// The database's length in pages.
    fn page_count(&self) -> u32;

    /// The bytes of a page that b-trees use: all but the reserved ones at its end.
    fn usable(&self) -> usize;

    /// Page `pgno`, which is from 1 to the page count.
    ///
    /// # Errors
    /// It cannot be read.
    fn page(&mut self, pgno: u32) -> Result<Vec<u8>>;
}

/// Bytes of a page of `page_bytes` that b-trees use, by the reserved bytes that the database's header names.
pub fn usable_bytes(page_bytes: usize, reserved: u8) -> Option<usize> {
    page_bytes
        .checked_sub(usize::from(reserved))
        .filter(|usable| *usable >= USABLE_BYTES_MIN)
}

/// A page of a b-tree.
pub struct Node {
    pgno: u32,
    kind: Kind,
    usable: usize,
    page: Vec<u8>,
    /// Where each cell begins.
    cells: Vec<usize>,
    right: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    IndexInterior,
    TableInterior,
    IndexLeaf,
    TableLeaf,
}

/// A row, or an entry of an index, as its page has it.
pub struct Cell<'a> {
    /// The row's number; 0 in an index.
    pub rowid: i64,
    /// Length of the payload.
    pub length: usize,
    /// Its beginning.
    pub local: &'a [u8],
    /// The first overflow page; 0: the payload is all here.
    pub overflow: u32,
}

/// An image that is not what SQLite writes.
pub fn damaged(pgno: u32, what: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Corrupt, format_args!("page {pgno}: {what}"))
        .hint("check that state with PRAGMA integrity_check")
}

impl Node {
    /// Reads and checks page `pgno`.
    ///
    /// # Errors
    /// It is no page of a b-tree, or cannot be read.
    pub fn read(pages: &mut dyn Pages, pgno: u32) -> Result<Node> {
        if pgno == 0 || pgno > pages.page_count() {
            return Err(damaged(pgno, "a b-tree points beyond the database"));
        }
        Node::parse(pgno, pages.page(pgno)?, pages.usable())
    }

    /// Understands a page.
    ///
    /// # Errors
    /// It is no page of a b-tree.
    pub fn parse(pgno: u32, page: Vec<u8>, usable: usize) -> Result<Node> {
        let at = if pgno == 1 { HEADER_BYTES } else { 0 };
        let short = || damaged(pgno, "it ends within its header");
        let kind = match page.get(at).copied().ok_or_else(short)? {
            2 => Kind::IndexInterior,
            5 => Kind::TableInterior,
            10 => Kind::IndexLeaf,
            13 => Kind::TableLeaf,
            other => {
                return Err(damaged(
                    pgno,
                    format_args!("{other} is no kind of b-tree page"),
                ));
            }
        };
        let count = be16(&page, at + 3).ok_or_else(short)?;
        let (array, right) = if kind.is_leaf() {
            (at + 8, 0)
        } else {
            (at + 12, be32(&page, at + 8).ok_or_else(short)?)
        };
        let end = usable.min(page.len());
        let cells = (0..usize::from(count))
            .map(|i| {
                be16(&page, array + 2 * i)
                    .map(usize::from)
                    .filter(|offset| *offset >= array && *offset < end && array + 2 * i + 2 <= end)
                    .ok_or_else(|| damaged(pgno, format_args!("cell {i} is not within it")))
            })
            .collect::<Result<Vec<usize>>>()?;
        Ok(Node {
            pgno,
            kind,
            usable,
            page,
            cells,
            right,
        })
    }

    /// Whether it has no children.
    pub fn is_leaf(&self) -> bool {
        self.kind.is_leaf()
    }

    /// Whether its tree is a table's with rowids.
    pub fn is_table(&self) -> bool {
        matches!(self.kind, Kind::TableInterior | Kind::TableLeaf)
    }

    /// Its children, in the order of keys; none of a leaf.
    ///
    /// # Errors
    /// A cell is cut off.
    pub fn children(&self) -> Result<Vec<u32>> {
        if self.is_leaf() {
            return Ok(Vec::new());
        }
        let mut children = self
            .cells
            .iter()
            .map(|at| be32(&self.page, *at).ok_or_else(|| self.cut_off()))
            .collect::<Result<Vec<u32>>>()?;
        children.push(self.right);
        Ok(children)
    }

    /// How many rows or entries it has; none in the interior of a table.
    pub fn len(&self) -> usize {
        if self.kind == Kind::TableInterior {
            0
        } else {
            self.cells.len()
        }
    }

    /// A row or entry.
    ///
    /// # Errors
    /// There is none of that number, or it is cut off.
    pub fn cell(&self, index: usize) -> Result<Cell<'_>> {
        let cut = || self.cut_off();
        let mut at = *self.cells.get(index).ok_or_else(cut)?;
        if self.kind == Kind::IndexInterior {
            at += 4;
        }
        let end = self.usable.min(self.page.len());
        let content = self.page.get(..end).unwrap_or_default();
        let (length, used) = varint(content.get(at..).unwrap_or_default()).ok_or_else(cut)?;
        at += used;
        let mut rowid = 0;
        if self.kind == Kind::TableLeaf {
            let (number, used) = varint(content.get(at..).unwrap_or_default()).ok_or_else(cut)?;
            rowid = number as i64;
            at += used;
        }
        let length = usize::try_from(length)
            .ok()
            .filter(|length| *length <= i32::MAX as usize)
            .ok_or_else(|| damaged(self.pgno, format_args!("cell {index} is too long")))?;
        let here = self.local_bytes(length);
        let local = content.get(at..at + here).ok_or_else(cut)?;
        let overflow = if here == length {
            0
        } else {
            be32(content, at + here)
                .filter(|page| *page != 0)
                .ok_or_else(cut)?
        };
        Ok(Cell {
            rowid,
            length,
            local,
            overflow,
        })
    }

    /// How much of a payload is kept on the page.
    fn local_bytes(&self, length: usize) -> usize {
        let usable = self.usable;
        let max = if self.kind == Kind::TableLeaf {
            usable - 35
        } else {
            (usable - 12) * 64 / 255 - 23
        };
        if length <= max {
            return length;
        }
        let min = (usable - 12) * 32 / 255 - 23;
        let fitting = min + (length - min) % (usable - 4);
        if fitting <= max { fitting } else { min }
    }

    fn cut_off(&self) -> Error {
        damaged(self.pgno, "a cell is cut off")
    }
}

impl Kind {
    fn is_leaf(self) -> bool {
        matches!(self, Kind::IndexLeaf | Kind::TableLeaf)
    }
}

impl Cell<'_> {
    /// The whole payload; `seen` is told of each overflow page.
    ///
    /// # Errors
    /// The chain of overflow pages ends early, leads out of the database, or cannot be read.
    pub fn payload(&self, pages: &mut dyn Pages, seen: &mut dyn FnMut(u32)) -> Result<Vec<u8>> {
        let (usable, count) = (pages.usable(), pages.page_count());
        let most = usize::try_from(count)
            .unwrap_or(usize::MAX)
            .saturating_mul(usable);
        if self.length > most {
            return Err(damaged(self.overflow, "a row is longer than the database"));
        }
        let mut payload = Vec::with_capacity(self.length);
        payload.extend_from_slice(self.local);
        let mut next = self.overflow;
        while payload.len() < self.length {
            if next == 0 || next > count {
                return Err(damaged(next, "a row's overflow pages end early"));
            }
            seen(next);
            let page = pages.page(next)?;
            let content = page.get(4..usable).unwrap_or_default();
            let left = (self.length - payload.len()).min(content.len());
            payload.extend_from_slice(content.get(..left).unwrap_or_default());
            if left == 0 {
                return Err(damaged(next, "an overflow page is empty"));
            }
            next = be32(&page, 0).unwrap_or(0);
        }
        Ok(payload)
    }
}

/// The pages of one tree.
pub struct Tree {
    /// Those with children.
    pub interior: Vec<u32>,
    /// Those without, in the order of keys.
    pub leaves: Vec<u32>,
    /// Whether it is a table's with rowids.
    pub is_table: bool,
}

impl Tree {
    /// Reads the interior pages of the tree at `root`, and one leaf: all leaves of a tree are equally deep.
    ///
    /// # Errors
    /// A page is no page of a b-tree, or the tree has more pages than the database, or cannot be read.
    pub fn read(pages: &mut dyn Pages, root: u32) -> Result<Tree> {
        let node = Node::read(pages, root)?;
        let mut tree = Tree {
            interior: Vec::new(),
            leaves: Vec::new(),
            is_table: node.is_table(),
        };
        let mut depth = 0;
        let mut down = node.children()?.first().copied();
        while let Some(child) = down {
            depth += 1;
            if depth > DEPTH_MAX {
                return Err(damaged(root, "the tree is deeper than any"));
            }
            down = Node::read(pages, child)?.children()?.first().copied();
        }
        let mut budget = pages.page_count();
        tree.collect(pages, node, depth, &mut budget)?;
        Ok(tree)
    }

    fn collect(
        &mut self,
        pages: &mut dyn Pages,
        node: Node,
        depth: usize,
        budget: &mut u32,
    ) -> Result<()> {
        *budget = budget
            .checked_sub(1)
            .ok_or_else(|| damaged(node.pgno, "the tree has more pages than the database"))?;
        if depth == 0 {
            self.leaves.push(node.pgno);
            return Ok(());
        }
        if node.is_leaf() || node.is_table() != self.is_table {
            return Err(damaged(
                node.pgno,
                "a page of another kind than its neighbours",
            ));
        }
        let children = node.children()?;
        self.interior.push(node.pgno);
        drop(node);
        for child in children {
            if depth > 1 {
                let node = Node::read(pages, child)?;
                self.collect(pages, node, depth - 1, budget)?;
                continue;
            }
            *budget = budget
                .checked_sub(1)
                .ok_or_else(|| damaged(child, "the tree has more pages than the database"))?;
            self.leaves.push(child);
        }
        Ok(())
    }
}

/// The pages that hold nothing: the free list, trunks and leaves.
///
/// # Errors
/// The list leads out of the database or in a circle, or cannot be read.
pub fn free_pages(pages: &mut dyn Pages, seen: &mut dyn FnMut(u32)) -> Result<()> {
    let first = pages.page(1)?;
    let mut trunk = be32(&first, 32).unwrap_or(0);
    let mut budget = pages.page_count();
    while trunk != 0 {
        if trunk > pages.page_count() || budget == 0 {
            return Err(damaged(trunk, "the free list leads nowhere"));
        }
        budget -= 1;
        seen(trunk);
        let page = pages.page(trunk)?;
        let count = be32(&page, 4).unwrap_or(0) as usize;
        for i in 0..count.min(pages.usable() / 4) {
            seen(be32(&page, 8 + 4 * i).unwrap_or(0));
        }
        trunk = be32(&page, 0).unwrap_or(0);
    }
    Ok(())
}

/// The pages that map each page to its parent, of a database with auto-vacuum.
///
/// # Errors
/// The first page cannot be read.
pub fn pointer_maps(
    pages: &mut dyn Pages,
    lock_page: u32,
    seen: &mut dyn FnMut(u32),
) -> Result<()> {
    let first = pages.page(1)?;
    if be32(&first, 52).unwrap_or(0) == 0 {
        return Ok(());
    }
    let step = u32::try_from(pages.usable() / 5 + 1).unwrap_or(u32::MAX);
    let mut at: u32 = 2;
    while at <= pages.page_count() {
        // A map that would be the lock-byte page comes right behind it.
        seen(if at == lock_page { at + 1 } else { at });
        at = match at.checked_add(step) {
            Some(next) => next,
            None => break,
        };
    }
    Ok(())
}

/// A number of 1 to 9 bytes, and how many it took.
pub fn varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut value = 0u64;
    for (i, byte) in bytes.iter().take(9).enumerate() {
        if i == 8 {
            return Some((value << 8 | u64::from(*byte), 9));
        }
        value = value << 7 | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            return Some((value, i + 1));
        }
    }
    None
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_be_bytes(bytes.try_into().ok()?))
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}
