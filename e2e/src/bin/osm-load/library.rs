//! Names and references that many fake Envoys have in common, kept once.
//!
//! One library serves all fake Envoys of a thread. Invariant: an id means the same text for as long as the library lives.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hasher as _},
    rc::Rc,
    sync::Arc,
};

use anyhow::Result;
use bytes::Bytes;
use osm_core::resource::ResourceType;

use crate::reference;

/// A text, by number.
pub(crate) type Id = u32;

/// Ids of the names a resource refers to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Links {
    /// EDS.
    pub(crate) endpoints: Vec<Id>,
    /// RDS.
    pub(crate) routes: Vec<Id>,
    /// SDS.
    pub(crate) secrets: Vec<Id>,
}

/// Texts by id, and what each version of a resource refers to.
#[derive(Debug, Default)]
pub(crate) struct Library {
    ids: HashMap<Arc<str>, Id>,
    texts: Vec<Bytes>,
    links: HashMap<(ResourceType, Id, u64), Rc<Links>>,
}

impl Library {
    /// The id of a text.
    pub(crate) fn id(&mut self, text: &str) -> Id {
        if let Some(id) = self.ids.get(text) {
            return *id;
        }
        let id = Id::try_from(self.texts.len()).unwrap_or(Id::MAX);
        self.texts.push(Bytes::copy_from_slice(text.as_bytes()));
        self.ids.insert(text.into(), id);
        id
    }

    /// The text of an id; not copied, as thousands of fake Envoys that come back at once list thousands of them.
    pub(crate) fn text(&self, id: Id) -> Bytes {
        self.texts[id as usize].clone()
    }

    /// A number that stands for a resource's version: the version's id, or a hash of the body where resources carry none.
    pub(crate) fn version(&mut self, version: &str, body: &[u8]) -> u64 {
        if version.is_empty() {
            let mut hasher = DefaultHasher::new();
            hasher.write(body);
            hasher.finish()
        } else {
            self.id(version).into()
        }
    }

    /// What this version of a resource refers to.
    ///
    /// # Errors
    /// When the body cannot be read.
    pub(crate) fn links(
        &mut self,
        kind: ResourceType,
        name: Id,
        version: u64,
        body: &[u8],
    ) -> Result<Rc<Links>> {
        if let Some(links) = self.links.get(&(kind, name, version)) {
            return Ok(links.clone());
        }
        let found = reference::of(kind, body)?;
        let mut ids = |names: Vec<String>| names.iter().map(|name| self.id(name)).collect();
        let links = Rc::new(Links {
            endpoints: ids(found.endpoints),
            routes: ids(found.routes),
            secrets: ids(found.secrets),
        });
        self.links.insert((kind, name, version), links.clone());
        Ok(links)
    }
}
