//! What must survive: XIDs by message GUID, UIDs by XID, and the number reservation.
