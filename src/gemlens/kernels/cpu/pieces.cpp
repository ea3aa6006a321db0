#include "pieces.hpp"

#include <algorithm>
#include <cstdio>
#include <stdexcept>
#include <tuple>

namespace gemlens {
namespace {

constexpr std::uint64_t BASE = 0x9E3779B97F4A7C15;  // of hashes; any large odd number would do
constexpr std::string_view SPACE = "\xE2\x96\x81";  // how SentencePiece writes a space
constexpr std::int32_t SOON = 16;  // pieces after which one finds its slot, which is asked for now
constexpr std::size_t MOST = std::size_t{1} << 29;  // bytes of a text: three times as many are counted in 32 bits

std::uint32_t mark_of(std::uint64_t hash) { return static_cast<std::uint32_t>(hash); }

std::uint8_t byte_of(char byte) { return static_cast<std::uint8_t>(byte); }

// That of two texts, one behind the other, is hash(first) * BASE^(bytes of the second) + hash(second).
std::uint64_t hash_of(std::string_view text) {
    std::uint64_t hash = 0;
    for (const char byte : text) hash = hash * BASE + byte_of(byte) + 1;
    return hash;
}

// The first character of a text that is not empty.
std::string_view first_of(std::string_view text) {
    const std::uint8_t lead = byte_of(text[0]);
    return text.substr(0, lead < 0xC0 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4);
}

}  // namespace

// A piece of a text that is being encoded.
struct Pieces::Symbol {
    std::int32_t id;              // -1: it was joined to the one before it
    std::int32_t previous, next;  // -1: there is none
    std::uint32_t bytes;
};

// Two neighbours that make a piece.
struct Pieces::Pair {
    double cost;
    std::int32_t left, right, made;  // ids
    std::int32_t at;                 // where the left one is among the symbols
};

Pieces::Pieces(const Listed& listed, std::int32_t unknown, bool has_bytes)
    : characters_(listed.characters), slots_(1024), powers_{1}, unknown_(unknown) {
    std::string_view rest = characters_;
    while (slots_.size() < listed.count + listed.count / 2) slots_.resize(2 * slots_.size());
    pieces_.reserve(listed.count);
    for (std::int32_t id = 0; id < static_cast<std::int32_t>(listed.count); ++id) {
        std::size_t bytes = 0;
        for (int n = 0; n < listed.lengths[id] && bytes < rest.size(); ++n) bytes += first_of(rest.substr(bytes)).size();
        const std::string_view text = rest.substr(0, bytes);
        const std::uint8_t roles = listed.roles[id];
        const auto start = static_cast<std::uint32_t>(characters_.size() - rest.size());
        pieces_.push_back({hash_of(text), roles & FIRST ? 0.0 : -listed.scores[id], start, static_cast<std::uint16_t>(bytes),
                           listed.lengths[id], roles});
        rest.remove_prefix(bytes);
        while (powers_.size() <= bytes) powers_.push_back(powers_.back() * BASE);
        if (!(roles & FOUND) || text.empty()) continue;
        found_.push_back(id);
        may_begin_[byte_of(text[0])] = true;
    }
    for (std::int32_t id = 0; id < count(); ++id) {
        __builtin_prefetch(&slots_[first_slot(piece(std::min(id + SOON, count() - 1)).hash)], 1);
        Slot& place = slots_[slot(piece(id).hash, [&](std::int32_t other) { return text(other) == text(id); })];
        if (place.id < 0) place = {id, mark_of(piece(id).hash)}, ++distinct_;
    }
    std::sort(found_.begin(), found_.end(), [&](std::int32_t a, std::int32_t b) { return text(a) < text(b); });
    for (int byte = 0; byte < 256; ++byte) {
        char name[8];
        std::snprintf(name, sizeof name, "<0x%02X>", static_cast<unsigned>(byte));
        bytes_[byte] = has_bytes ? find(name) : -1;
    }
}

std::string_view Pieces::text(std::int32_t id) const {
    return std::string_view(characters_).substr(piece(id).start, piece(id).bytes);
}

std::size_t Pieces::first_slot(std::uint64_t hash) const { return (hash ^ hash >> 32) * BASE >> 32 & (slots_.size() - 1); }

// The slot of the piece with this hash that is equal, or the free slot where it would be.
template <class Equal>
std::size_t Pieces::slot(std::uint64_t hash, const Equal& is_equal) const {
    std::size_t at = first_slot(hash);
    for (; slots_[at].id >= 0; at = (at + 1) & (slots_.size() - 1))
        if (slots_[at].mark == mark_of(hash) && is_equal(slots_[at].id)) break;
    return at;
}

std::int32_t Pieces::find(std::string_view wanted) const {
    return slots_[slot(hash_of(wanted), [&](std::int32_t id) { return text(id) == wanted; })].id;
}

// The piece that two make; -1: none.
std::int32_t Pieces::joined(std::int32_t left, std::int32_t right) const {
    const std::string_view first = text(left), second = text(right);
    const std::size_t bytes = first.size() + second.size();
    if (first.empty() || second.empty() || bytes >= powers_.size()) return -1;
    const std::uint64_t hash = piece(left).hash * powers_[second.size()] + piece(right).hash;
    const std::int32_t made = slots_[slot(hash, [&](std::int32_t id) {
        const std::string_view both = text(id);
        return both.size() == bytes && both.substr(0, first.size()) == first && both.substr(first.size()) == second;
    })].id;
    return made >= 0 && piece(made).roles & MADE ? made : -1;
}

// The longest piece to be found that a text begins with; -1: none. What may be it, in order, is narrowed byte by byte.
std::int32_t Pieces::longest_found(std::string_view given) const {
    std::int32_t longest = -1;
    auto low = found_.begin(), high = found_.end();
    for (std::size_t n = 0; n < given.size(); ++n) {
        const std::uint8_t byte = byte_of(given[n]);
        low = std::partition_point(low, high, [&](std::int32_t id) { return text(id).size() <= n || byte_of(text(id)[n]) < byte; });
        high = std::partition_point(low, high, [&](std::int32_t id) { return byte_of(text(id)[n]) == byte; });
        if (low == high) break;
        if (text(*low).size() == n + 1) longest = *low;
    }
    return longest;
}

// Whether a is joined before b: the one with less cost, the longer left part, the longer right part, the lower id, the
// earlier in the text.
bool Pieces::is_better(const Pair& a, const Pair& b) const {
    const auto order = [&](const Pair& pair) {
        const auto characters = [&](std::int32_t id) { return -static_cast<int>(piece(id).characters); };
        return std::make_tuple(characters(pair.left), characters(pair.right), pair.made, pair.at);
    };
    return a.cost != b.cost ? a.cost < b.cost : order(a) < order(b);
}

// The characters of a text as pieces. `characters`: gets for each byte, with spaces as they are written, its character.
std::vector<Pieces::Symbol> Pieces::symbols_of(std::string_view given, std::vector<std::int32_t>* characters) const {
    std::vector<Symbol> symbols;
    const auto add = [&](std::int32_t id, std::size_t bytes) {
        const auto at = static_cast<std::int32_t>(symbols.size());
        symbols.push_back({id, at - 1, at + 1, static_cast<std::uint32_t>(bytes)});
    };
    std::size_t unknown = 0;  // bytes that wait for their end
    const auto end_unknown = [&] {
        if (unknown) add(unknown_, unknown);
        unknown = 0;
    };
    for (std::int32_t number = 0; !given.empty(); ++number) {
        std::string_view character = first_of(given);
        given.remove_prefix(character.size());
        if (character == " ") character = SPACE;
        if (characters) characters->insert(characters->end(), character.size(), number);
        const auto has_piece = [&](char byte) { return bytes_[byte_of(byte)] >= 0; };
        if (const std::int32_t id = find(character); id >= 0) {
            end_unknown();
            add(id, character.size());
        } else if (std::all_of(character.begin(), character.end(), has_piece)) {
            for (const char byte : character) add(bytes_[byte_of(byte)], 1);  // the library lets unknown ones wait here
        } else {
            unknown += character.size();
        }
    }
    end_unknown();
    if (!symbols.empty()) symbols.back().next = -1;
    return symbols;
}

void Pieces::join(std::vector<Symbol>& symbols) const {
    const auto symbol = [&](std::int32_t at) -> Symbol& { return symbols[static_cast<std::size_t>(at)]; };
    const auto is_worse = [this](const Pair& a, const Pair& b) { return is_better(b, a); };
    std::vector<Pair> pairs;  // a heap, the best in front
    const auto add_pair = [&](std::int32_t at) {
        if (at < 0 || symbol(at).next < 0) return false;
        const std::int32_t left = symbol(at).id, right = symbol(symbol(at).next).id, made = joined(left, right);
        if (made >= 0) pairs.push_back({piece(made).cost, left, right, made, at});
        return made >= 0;
    };
    for (std::int32_t at = 0; at < static_cast<std::int32_t>(symbols.size()); ++at) add_pair(at);
    std::make_heap(pairs.begin(), pairs.end(), is_worse);
    while (!pairs.empty()) {
        const Pair best = pairs.front();
        std::pop_heap(pairs.begin(), pairs.end(), is_worse);
        pairs.pop_back();
        Symbol& left = symbol(best.at);
        if (left.id != best.left || left.next < 0 || symbol(left.next).id != best.right) continue;  // one was joined otherwise
        Symbol& right = symbol(left.next);
        left = {best.made, left.previous, right.next, left.bytes + right.bytes};
        right.id = -1;
        if (left.next >= 0) symbol(left.next).previous = best.at;
        for (const std::int32_t at : {left.previous, best.at})
            if (add_pair(at)) std::push_heap(pairs.begin(), pairs.end(), is_worse);
    }
}

void Pieces::encode_stretch(std::string_view given, bool with_places, Encoded& result) const {
    std::vector<std::int32_t> characters;
    std::vector<Symbol> symbols = symbols_of(given, with_places ? &characters : nullptr);
    join(symbols);
    std::size_t start = 0;
    for (const Symbol& symbol : symbols) {
        if (symbol.id < 0) continue;
        result.ids.push_back(symbol.id);
        if (!with_places) continue;
        const std::size_t end = start + symbol.bytes;
        result.places.emplace_back(result.characters + characters[start], result.characters + characters[end - 1] + 1);
        start = end;
    }
    if (!characters.empty()) result.characters += characters.back() + 1;
}

Encoded Pieces::encode(std::string_view given, bool split, bool with_places) const {
    if (given.size() > MOST) throw std::length_error("The text has more than 2^29 bytes; encode it in parts.");
    Encoded result;
    std::size_t start = 0, at = 0;
    while (at < given.size()) {
        const std::int32_t found = may_begin_[byte_of(given[at])] ? longest_found(given.substr(at)) : -1;
        if (found < 0) {
            ++at;
            continue;
        }
        const std::size_t end = at + text(found).size();
        if (!split || !(piece(found).roles & SPECIAL)) {
            encode_stretch(given.substr(start, at - start), with_places, result);
            result.ids.push_back(found);
            const std::int32_t last = result.characters + piece(found).characters;
            if (with_places) result.places.emplace_back(result.characters, last);
            result.characters = last;
            start = end;
        }
        at = end;
    }
    encode_stretch(given.substr(start), with_places, result);
    return result;
}

}  // namespace gemlens
