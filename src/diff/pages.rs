//! Which pages of which table must be read, so that no row that differs is missed.

use std::sync::Arc;

use super::Pair;
use super::btree::{Node, Pages, Tree, free_pages, pointer_maps};
use super::rows::Part;
use super::schema::{Schema, Table};
use super::side::{Changed, PageSet, Side};
use crate::error::Result;

/// A table of one state, its pages, and those of them that must be read.
struct Grown {
    table: Arc<Table>,
    tree: Tree,
    read: Vec<u32>,
}

/// A table before and after.
struct Twin {
    a: Option<Grown>,
    b: Option<Grown>,
}

impl Tree {
    /// The pages that hold rows or entries, in the order of keys as far as they have one.
    fn holders(&self) -> impl Iterator<Item = u32> {
        let interior = self.interior.iter().filter(|_| !self.is_table);
        interior.chain(&self.leaves).copied()
    }

    fn add_to(&self, set: &mut PageSet) {
        let pages = self.interior.iter().chain(&self.leaves);
        pages.for_each(|pgno| set.insert(*pgno));
    }
}

impl Grown {
    fn new(side: &mut Side, table: &Table) -> Result<Grown> {
        Ok(Grown {
            table: Arc::new(table.clone()),
            tree: Tree::read(side, table.root)?,
            read: Vec::new(),
        })
    }

    fn into_part(self) -> Part {
        Part {
            table: self.table,
            pages: self.read.into(),
        }
    }
}

/// The tables that may differ, each with the pages that must be read.
///
/// # Errors
/// A page cannot be read, or is damaged.
pub fn pairs(
    a: &mut Side,
    b: &mut Side,
    schemas: &[Schema; 2],
    changed: &Changed,
) -> Result<Vec<Pair>> {
    let mut twins = twins(a, b, schemas)?;
    twins
        .iter_mut()
        .for_each(|twin| twin.choose(changed, &PageSet::default()));
    if let Changed::Some(set) = changed {
        let mut left = Left {
            pages: set.clone(),
            owned: PageSet::default(),
        };
        if let Some(suspects) = left.suspects(b, &twins, &schemas[1], changed)? {
            twins
                .iter_mut()
                .for_each(|twin| twin.choose(changed, &suspects));
        }
    }
    Ok(twins
        .into_iter()
        .filter(|twin| {
            let some =
                |grown: &Option<Grown>| grown.as_ref().is_some_and(|grown| !grown.read.is_empty());
            some(&twin.a) || some(&twin.b)
        })
        .map(|twin| Pair {
            a: twin.a.map(Grown::into_part),
            b: twin.b.map(Grown::into_part),
        })
        .collect())
}

fn twins(a: &mut Side, b: &mut Side, schemas: &[Schema; 2]) -> Result<Vec<Twin>> {
    let [before, after] = schemas;
    let mut twins = Vec::new();
    for old in &before.tables {
        let one = Some(Grown::new(a, old)?);
        let new = after.table(&old.name);
        let other = new.map(|new| Grown::new(b, new)).transpose()?;
        if new.is_some_and(|new| !old.can_become(new)) {
            twins.push(Twin { a: one, b: None });
            twins.push(Twin { a: None, b: other });
        } else {
            twins.push(Twin { a: one, b: other });
        }
    }
    for new in &after.tables {
        if before.table(&new.name).is_none() {
            let other = Some(Grown::new(b, new)?);
            twins.push(Twin { a: None, b: other });
        }
    }
    Ok(twins)
}

impl Twin {
    /// Leaves out the pages that both have and that did not change; unless they are suspect, because a page that a row of
    /// theirs goes on in did.
    fn choose(&mut self, changed: &Changed, suspects: &PageSet) {
        let set = |grown: &Option<Grown>| {
            let mut set = PageSet::default();
            if let Some(grown) = grown {
                grown.tree.add_to(&mut set);
            }
            set
        };
        let (of_a, of_b) = (set(&self.a), set(&self.b));
        for (grown, others) in [(&mut self.a, of_b), (&mut self.b, of_a)] {
            if let Some(grown) = grown {
                let needed = |pgno: &u32| {
                    changed.contains(*pgno) || suspects.contains(*pgno) || !others.contains(*pgno)
                };
                grown.read = grown.tree.holders().filter(needed).collect();
            }
        }
    }
}

/// Changed pages whose owner is not found yet. An overflow page may change while the page of its row does not.
struct Left {
    pages: PageSet,
    owned: PageSet,
}

impl Left {
    /// Whether pages of the state `b` are left.
    fn is_any(&mut self, b: &Side) -> bool {
        self.pages.remove_all(&self.owned, b.page_count())
    }

    /// The pages that did not change and have a row that goes on in one that did; `None`: there are no such rows.
    ///
    /// The first overflow page of a row that changed leads both states to the same place, so the later state's is enough.
    fn suspects(
        &mut self,
        b: &mut Side,
        twins: &[Twin],
        schema: &Schema,
        changed: &Changed,
    ) -> Result<Option<PageSet>> {
        let afters: Vec<&Grown> = twins.iter().filter_map(|twin| twin.b.as_ref()).collect();
        self.owned.insert(0);
        self.owned.insert(b.lock_page());
        for grown in &afters {
            grown.tree.add_to(&mut self.owned);
        }
        if !self.is_any(b) {
            return Ok(None);
        }
        for grown in &afters {
            for pgno in &grown.read {
                self.follow(b, *pgno)?;
            }
        }
        if !self.is_any(b) {
            return Ok(None);
        }
        let owned = &mut self.owned;
        free_pages(b, &mut |pgno| owned.insert(pgno))?;
        let lock_page = b.lock_page();
        pointer_maps(b, lock_page, &mut |pgno| owned.insert(pgno))?;
        let indexes = schema
            .objects
            .iter()
            .filter(|object| object.kind == "index");
        let roots = indexes.map(|object| object.root).filter(|root| *root != 0);
        let mut trees = Vec::new();
        for root in roots.chain([1]) {
            let tree = Tree::read(b, root)?;
            tree.add_to(&mut self.owned);
            trees.push(tree);
        }
        if !self.is_any(b) {
            return Ok(None);
        }
        for tree in &trees {
            for pgno in tree.holders().filter(|pgno| changed.contains(*pgno)) {
                self.follow(b, pgno)?;
            }
        }
        if !self.is_any(b) {
            return Ok(None);
        }
        self.search(b, &afters).map(Some)
    }

    /// Takes the overflow pages of the rows on page `pgno` for owned.
    fn follow(&mut self, b: &mut Side, pgno: u32) -> Result<()> {
        let node = Node::read(b, pgno)?;
        for i in 0..node.len() {
            let cell = node.cell(i)?;
            if cell.overflow != 0 {
                cell.payload(b, &mut |page| self.owned.insert(page))?;
            }
        }
        Ok(())
    }

    /// Looks at every row that was not looked at yet.
    fn search(&self, b: &mut Side, afters: &[&Grown]) -> Result<PageSet> {
        let mut suspects = PageSet::default();
        for grown in afters {
            let mut known = PageSet::default();
            grown.read.iter().for_each(|pgno| known.insert(*pgno));
            for pgno in grown.tree.holders().filter(|pgno| !known.contains(*pgno)) {
                let node = Node::read(b, pgno)?;
                for i in 0..node.len() {
                    let cell = node.cell(i)?;
                    let mut found = false;
                    if cell.overflow != 0 {
                        cell.payload(b, &mut |page| found |= self.pages.contains(page))?;
                    }
                    if found {
                        suspects.insert(pgno);
                    }
                }
            }
        }
        Ok(suspects)
    }
}

/// All pages of a table that hold rows.
///
/// # Errors
/// A page cannot be read, or is damaged.
pub fn all(side: &mut Side, table: &Table) -> Result<Vec<u32>> {
    Ok(Tree::read(side, table.root)?.holders().collect())
}
