//! What the data plane goes by, and the mistakes that can be planted there.

use sharding::keys::Rules;

/// Rules of the data plane: those of `Keys`, and mistakes of whoever performs them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manners {
    pub(crate) rules: Rules,
    /// A node keeps the entries of a shard that it gave up, for the case that it comes back.
    pub(crate) keeps_entries: bool,
    /// Who reads past an owner joins a load that was sent before.
    pub(crate) joins_sent: bool,
    /// A node that meets a higher fence does not tell its ownership.
    pub(crate) ignores_fences: bool,
    /// A write of unknown outcome is said to be not applied.
    pub(crate) blurs_unknown: bool,
    /// A router sends a write again when no answer comes.
    pub(crate) resends: bool,
    /// What was taken over is used whatever the grant says of the owner before (H2).
    pub(crate) takes_after_anything: bool,
    /// It is used before the answer to the seal has come.
    pub(crate) takes_unsealed: bool,
    /// Who gives a shard away does not note what changes meanwhile (H19).
    pub(crate) notes_nothing: bool,
    /// A shard is said to be taken over when the other one is asked to seal it.
    pub(crate) says_taken_unsealed: bool,
    /// A seal is answered before the node's own membership knows of it.
    pub(crate) answers_before_it_knows: bool,
    /// A sealed shard is served on (H1).
    pub(crate) serves_on: bool,
    /// A shard is sealed while writes are in the air (H16).
    pub(crate) seals_at_once: bool,
    /// Notices during a pull are ignored (H19).
    pub(crate) ignores_notices: bool,
    /// Notices before a pull are forgotten.
    pub(crate) forgets_notices: bool,
    /// What has changed since the last first chunk is said to whoever seals.
    pub(crate) mixes_passes: bool,
}

impl Manners {
    pub(crate) const GOOD: Self = Self {
        rules: Rules::ALL,
        keeps_entries: false,
        joins_sent: false,
        ignores_fences: false,
        blurs_unknown: false,
        resends: false,
        takes_after_anything: false,
        takes_unsealed: false,
        says_taken_unsealed: false,
        answers_before_it_knows: false,
        notes_nothing: false,
        serves_on: false,
        seals_at_once: false,
        ignores_notices: false,
        forgets_notices: false,
        mixes_passes: false,
    };
}
