"""The guest agent. Standard library only, packs into one zipapp, imports only agentd.linux."""
