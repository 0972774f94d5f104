# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_fleet_agent_global_optspecs
    string join \n h/help V/version
end

function __fish_fleet_agent_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_fleet_agent_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_fleet_agent_using_subcommand
    set -l cmd (__fish_fleet_agent_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c fleet-agent -n "__fish_fleet_agent_needs_command" -s h -l help -d 'Print help'
complete -c fleet-agent -n "__fish_fleet_agent_needs_command" -s V -l version -d 'Print version'
complete -c fleet-agent -n "__fish_fleet_agent_needs_command" -f -a "join" -d 'Make this machine a node of a hub, with a join token'
complete -c fleet-agent -n "__fish_fleet_agent_needs_command" -f -a "run" -d 'Run the agent until SIGTERM or SIGINT'
complete -c fleet-agent -n "__fish_fleet_agent_needs_command" -f -a "launch" -d 'Run the agent as its child, so that the hub can update it: a release that fails is returned from'
complete -c fleet-agent -n "__fish_fleet_agent_needs_command" -f -a "become" -d 'Become a release of the agent: how the launcher starts one'
complete -c fleet-agent -n "__fish_fleet_agent_needs_command" -f -a "status" -d 'Tell how the running agent is'
complete -c fleet-agent -n "__fish_fleet_agent_needs_command" -f -a "outbox" -d 'Tell what the outbox holds, also while the agent is stopped'
complete -c fleet-agent -n "__fish_fleet_agent_needs_command" -f -a "device" -d 'Register, list and remove the devices behind the node, and give them passwords'
complete -c fleet-agent -n "__fish_fleet_agent_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand join" -l token -d 'The join token that `fleet join-token create` printed; - reads it from standard input' -r
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand join" -l token-file -d 'File with the join token; - is standard input' -r -F
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand join" -l node -d 'The id that the node would like to have; never to change [env: FLEET_NODE] [default: the host\'s name and 4 digits of its key\'s hash]' -r
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand join" -l name -d 'A name for people' -r
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand join" -l data -d 'The data folder [env: FLEET_DATA] [default: ./fleet-agent-data]' -r -F
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand join" -s o -l output -d 'How to print it' -r -f -a "table\t'For people'
json\t'For programs'"
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand join" -l force -d 'Leave the hub that was joined before, or join the same one anew with a new key'
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand join" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand run" -l data -d 'The data folder: outbox, identity, agent.toml [env: FLEET_DATA] [default: ./fleet-agent-data, else the package\'s]' -r -F
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand run" -l api -d 'Address of the edge API; port 0 picks one [env: FLEET_API] [default: 127.0.0.1:9099]' -r
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand run" -l hub -d 'The hub, as mqtts://host:port, or mqtt://host:port on this machine [env: FLEET_HUB] [default: where it joined]' -r
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand run" -l node -d 'The node\'s id, never to change [env: FLEET_NODE] [default: as joined, else the host\'s name]' -r
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand run" -l secret-file -d 'File with the node\'s secret [env: FLEET_SECRET_FILE] [default: identity/secret in the data folder]' -r -F
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand run" -l config -d 'Another file than agent.toml in the data folder [env: FLEET_CONFIG]' -r -F
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand run" -l log-format -d 'The form of the log [env: FLEET_LOG_FORMAT] [default: auto]' -r -f -a "auto\t'As the journal wants it when the standard error is the journal, else text'
text\t'Text with time and level'
json\t'One JSON object a line'
journal\t'Text without time and colours, its priority in front as `<6>` (sd-daemon(3))'"
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand run" -l print-config -d 'Print the configuration that would be used, as agent.toml, and end'
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand run" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand launch" -l data -d 'The data folder: outbox, identity, agent.toml, releases [env: FLEET_DATA] [default: ./fleet-agent-data]' -r -F
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand launch" -l grace-s -d 'Seconds that the agent has to end when it is told to; then it is killed' -r
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand launch" -s h -l help -d 'Print help'
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand become" -l launcher -d 'The process of the launcher' -r
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand become" -l program -d 'The executable; absent: this one' -r -F
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand become" -s h -l help -d 'Print help'
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand status" -l data -d 'The data folder: outbox, identity, agent.toml [env: FLEET_DATA] [default: ./fleet-agent-data, else the package\'s]' -r -F
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand status" -l api -d 'Address of the edge API; port 0 picks one [env: FLEET_API] [default: 127.0.0.1:9099]' -r
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand status" -l hub -d 'The hub, as mqtts://host:port, or mqtt://host:port on this machine [env: FLEET_HUB] [default: where it joined]' -r
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand status" -l node -d 'The node\'s id, never to change [env: FLEET_NODE] [default: as joined, else the host\'s name]' -r
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand status" -l secret-file -d 'File with the node\'s secret [env: FLEET_SECRET_FILE] [default: identity/secret in the data folder]' -r -F
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand status" -l config -d 'Another file than agent.toml in the data folder [env: FLEET_CONFIG]' -r -F
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand status" -s o -l output -d 'How to print it' -r -f -a "table\t'For people'
json\t'For programs'"
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand status" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand outbox" -l data -d 'The data folder: outbox, identity, agent.toml [env: FLEET_DATA] [default: ./fleet-agent-data, else the package\'s]' -r -F
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand outbox" -l api -d 'Address of the edge API; port 0 picks one [env: FLEET_API] [default: 127.0.0.1:9099]' -r
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand outbox" -l hub -d 'The hub, as mqtts://host:port, or mqtt://host:port on this machine [env: FLEET_HUB] [default: where it joined]' -r
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand outbox" -l node -d 'The node\'s id, never to change [env: FLEET_NODE] [default: as joined, else the host\'s name]' -r
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand outbox" -l secret-file -d 'File with the node\'s secret [env: FLEET_SECRET_FILE] [default: identity/secret in the data folder]' -r -F
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand outbox" -l config -d 'Another file than agent.toml in the data folder [env: FLEET_CONFIG]' -r -F
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand outbox" -s o -l output -d 'How to print it' -r -f -a "table\t'For people'
json\t'For programs'"
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand outbox" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand device; and not __fish_seen_subcommand_from add ls rm help" -l data -d 'The data folder: outbox, identity, agent.toml [env: FLEET_DATA] [default: ./fleet-agent-data, else the package\'s]' -r -F
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand device; and not __fish_seen_subcommand_from add ls rm help" -l api -d 'Address of the edge API; port 0 picks one [env: FLEET_API] [default: 127.0.0.1:9099]' -r
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand device; and not __fish_seen_subcommand_from add ls rm help" -l hub -d 'The hub, as mqtts://host:port, or mqtt://host:port on this machine [env: FLEET_HUB] [default: where it joined]' -r
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand device; and not __fish_seen_subcommand_from add ls rm help" -l node -d 'The node\'s id, never to change [env: FLEET_NODE] [default: as joined, else the host\'s name]' -r
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand device; and not __fish_seen_subcommand_from add ls rm help" -l secret-file -d 'File with the node\'s secret [env: FLEET_SECRET_FILE] [default: identity/secret in the data folder]' -r -F
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand device; and not __fish_seen_subcommand_from add ls rm help" -l config -d 'Another file than agent.toml in the data folder [env: FLEET_CONFIG]' -r -F
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand device; and not __fish_seen_subcommand_from add ls rm help" -s h -l help -d 'Print help'
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand device; and not __fish_seen_subcommand_from add ls rm help" -f -a "add" -d 'Register a device and give it a new password'
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand device; and not __fish_seen_subcommand_from add ls rm help" -f -a "ls" -d 'List the devices of the running agent'
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand device; and not __fish_seen_subcommand_from add ls rm help" -f -a "rm" -d 'Remove a device and its password'
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand device; and not __fish_seen_subcommand_from add ls rm help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand device; and __fish_seen_subcommand_from add" -l kind -d 'What kind of board' -r
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand device; and __fish_seen_subcommand_from add" -l name -d 'A name for people' -r
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand device; and __fish_seen_subcommand_from add" -l heartbeat -d 'How often it speaks, in seconds' -r
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand device; and __fish_seen_subcommand_from add" -l sleep -d 'How long it sleeps after each word, in seconds' -r
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand device; and __fish_seen_subcommand_from add" -s o -l output -d 'How to print it' -r -f -a "table\t'For people'
json\t'For programs'"
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand device; and __fish_seen_subcommand_from add" -l data -d 'The data folder: outbox, identity, agent.toml [env: FLEET_DATA] [default: ./fleet-agent-data, else the package\'s]' -r -F
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand device; and __fish_seen_subcommand_from add" -l api -d 'Address of the edge API; port 0 picks one [env: FLEET_API] [default: 127.0.0.1:9099]' -r
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand device; and __fish_seen_subcommand_from add" -l hub -d 'The hub, as mqtts://host:port, or mqtt://host:port on this machine [env: FLEET_HUB] [default: where it joined]' -r
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand device; and __fish_seen_subcommand_from add" -l node -d 'The node\'s id, never to change [env: FLEET_NODE] [default: as joined, else the host\'s name]' -r
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand device; and __fish_seen_subcommand_from add" -l secret-file -d 'File with the node\'s secret [env: FLEET_SECRET_FILE] [default: identity/secret in the data folder]' -r -F
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand device; and __fish_seen_subcommand_from add" -l config -d 'Another file than agent.toml in the data folder [env: FLEET_CONFIG]' -r -F
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand device; and __fish_seen_subcommand_from add" -l gateway -d 'It may speak for other devices, in `clawland/ID/batch`'
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand device; and __fish_seen_subcommand_from add" -l no-password -d 'It gets no password (and loses the one it has): for a listener that is open'
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand device; and __fish_seen_subcommand_from add" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand device; and __fish_seen_subcommand_from ls" -s o -l output -d 'How to print them' -r -f -a "table\t'For people'
json\t'For programs'"
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand device; and __fish_seen_subcommand_from ls" -l data -d 'The data folder: outbox, identity, agent.toml [env: FLEET_DATA] [default: ./fleet-agent-data, else the package\'s]' -r -F
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand device; and __fish_seen_subcommand_from ls" -l api -d 'Address of the edge API; port 0 picks one [env: FLEET_API] [default: 127.0.0.1:9099]' -r
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand device; and __fish_seen_subcommand_from ls" -l hub -d 'The hub, as mqtts://host:port, or mqtt://host:port on this machine [env: FLEET_HUB] [default: where it joined]' -r
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand device; and __fish_seen_subcommand_from ls" -l node -d 'The node\'s id, never to change [env: FLEET_NODE] [default: as joined, else the host\'s name]' -r
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand device; and __fish_seen_subcommand_from ls" -l secret-file -d 'File with the node\'s secret [env: FLEET_SECRET_FILE] [default: identity/secret in the data folder]' -r -F
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand device; and __fish_seen_subcommand_from ls" -l config -d 'Another file than agent.toml in the data folder [env: FLEET_CONFIG]' -r -F
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand device; and __fish_seen_subcommand_from ls" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand device; and __fish_seen_subcommand_from rm" -l data -d 'The data folder: outbox, identity, agent.toml [env: FLEET_DATA] [default: ./fleet-agent-data, else the package\'s]' -r -F
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand device; and __fish_seen_subcommand_from rm" -l api -d 'Address of the edge API; port 0 picks one [env: FLEET_API] [default: 127.0.0.1:9099]' -r
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand device; and __fish_seen_subcommand_from rm" -l hub -d 'The hub, as mqtts://host:port, or mqtt://host:port on this machine [env: FLEET_HUB] [default: where it joined]' -r
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand device; and __fish_seen_subcommand_from rm" -l node -d 'The node\'s id, never to change [env: FLEET_NODE] [default: as joined, else the host\'s name]' -r
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand device; and __fish_seen_subcommand_from rm" -l secret-file -d 'File with the node\'s secret [env: FLEET_SECRET_FILE] [default: identity/secret in the data folder]' -r -F
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand device; and __fish_seen_subcommand_from rm" -l config -d 'Another file than agent.toml in the data folder [env: FLEET_CONFIG]' -r -F
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand device; and __fish_seen_subcommand_from rm" -s h -l help -d 'Print help'
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand device; and __fish_seen_subcommand_from help" -f -a "add" -d 'Register a device and give it a new password'
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand device; and __fish_seen_subcommand_from help" -f -a "ls" -d 'List the devices of the running agent'
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand device; and __fish_seen_subcommand_from help" -f -a "rm" -d 'Remove a device and its password'
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand device; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand help; and not __fish_seen_subcommand_from join run launch become status outbox device help" -f -a "join" -d 'Make this machine a node of a hub, with a join token'
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand help; and not __fish_seen_subcommand_from join run launch become status outbox device help" -f -a "run" -d 'Run the agent until SIGTERM or SIGINT'
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand help; and not __fish_seen_subcommand_from join run launch become status outbox device help" -f -a "launch" -d 'Run the agent as its child, so that the hub can update it: a release that fails is returned from'
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand help; and not __fish_seen_subcommand_from join run launch become status outbox device help" -f -a "become" -d 'Become a release of the agent: how the launcher starts one'
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand help; and not __fish_seen_subcommand_from join run launch become status outbox device help" -f -a "status" -d 'Tell how the running agent is'
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand help; and not __fish_seen_subcommand_from join run launch become status outbox device help" -f -a "outbox" -d 'Tell what the outbox holds, also while the agent is stopped'
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand help; and not __fish_seen_subcommand_from join run launch become status outbox device help" -f -a "device" -d 'Register, list and remove the devices behind the node, and give them passwords'
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand help; and not __fish_seen_subcommand_from join run launch become status outbox device help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand help; and __fish_seen_subcommand_from device" -f -a "add" -d 'Register a device and give it a new password'
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand help; and __fish_seen_subcommand_from device" -f -a "ls" -d 'List the devices of the running agent'
complete -c fleet-agent -n "__fish_fleet_agent_using_subcommand help; and __fish_seen_subcommand_from device" -f -a "rm" -d 'Remove a device and its password'
