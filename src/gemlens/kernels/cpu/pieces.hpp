// A vocabulary of pieces, and the pieces of a text: of all neighbours that make a piece the best two are joined, again
// and again, as SentencePiece's BPE does. Here are bytes, ids and ranks; processing/text/piece_tokenizer.py, which says
// what pieces are for, finds them here, not in Python, as it is loops over single characters that take the time.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace gemlens {

// What a piece does; several of these at once.
enum Role : std::uint8_t {
    MADE = 1,     // it is made of two others, the better its score the earlier
    FIRST = 2,    // it is made as if its score were 0
    FOUND = 4,    // it is found in a text before anything is made
    SPECIAL = 8,  // of those that are found: it stays text where texts are split
};

// All pieces: their UTF-8 one behind the other, and for each how many characters it has, its score and its roles.
struct Listed {
    std::string_view characters;
    const std::uint8_t* lengths;
    const double* scores;
    const std::uint8_t* roles;
    std::size_t count;
};

struct Encoded {
    std::vector<std::int32_t> ids;
    std::vector<std::pair<std::int32_t, std::int32_t>> places;  // each piece's first character in the text, and its last + 1
    std::int32_t characters = 0;                                // that have a place
};

class Pieces {
public:
    // `has_bytes`: a character that is no piece becomes the pieces <0x00> to <0xFF>. Others in a row become one `unknown`.
    Pieces(const Listed& listed, std::int32_t unknown, bool has_bytes);

    std::int32_t count() const { return static_cast<std::int32_t>(pieces_.size()); }
    std::int32_t distinct() const { return distinct_; }  // fewer where pieces are equal
    std::string_view text(std::int32_t id) const;
    double cost(std::int32_t id) const { return piece(id).cost; }  // the lower, the earlier it is made
    std::int32_t find(std::string_view text) const;  // -1: there is none

    // Of a text in UTF-8 with plain spaces. Of pieces to be found the one is taken that begins first, of those the
    // longest. `split`: special ones among these stay text.
    Encoded encode(std::string_view text, bool split, bool with_places) const;

private:
    struct Piece {
        std::uint64_t hash;
        double cost;
        std::uint32_t start;
        std::uint16_t bytes;
        std::uint8_t characters, roles;
    };
    struct Slot {
        std::int32_t id = -1;    // free
        std::uint32_t mark = 0;  // of the hash, so that few pieces are looked at in vain
    };
    struct Symbol;
    struct Pair;

    const Piece& piece(std::int32_t id) const { return pieces_[static_cast<std::size_t>(id)]; }
    std::size_t first_slot(std::uint64_t hash) const;
    template <class Equal>
    std::size_t slot(std::uint64_t hash, const Equal& is_equal) const;
    std::int32_t joined(std::int32_t left, std::int32_t right) const;
    std::int32_t longest_found(std::string_view text) const;
    bool is_better(const Pair& a, const Pair& b) const;
    std::vector<Symbol> symbols_of(std::string_view text, std::vector<std::int32_t>* characters) const;
    void join(std::vector<Symbol>& symbols) const;
    void encode_stretch(std::string_view text, bool with_places, Encoded& result) const;

    const std::string characters_;
    std::vector<Piece> pieces_;
    std::vector<Slot> slots_;            // each piece in the first that is free from where its hash points
    std::vector<std::uint64_t> powers_;  // of the base of hashes, up to the most bytes that a piece has
    std::vector<std::int32_t> found_;    // ids of those to be found, by their bytes
    std::int32_t bytes_[256];            // ids; -1: there is none
    bool may_begin_[256] = {};           // whether a piece to be found begins with the byte
    std::int32_t unknown_, distinct_ = 0;
};

}  // namespace gemlens
